/**
 * `main.ts OPERATION=FAULT[=PATTERN]..`: each operation broken off by a fault at those of its steps that the pattern
 * fits. Prints a line a round, which begins with FAILED where something was not as promised. See break-off.ts.
 */
import { FaultLab, type Step } from './lab.ts'
import { type OperationName, operations } from './operations.ts'
import { type Fault, faults, playRound, stepsOf } from './rounds.ts'

let isEnding = false
process.once('SIGTERM', () => {
  isEnding = true
})
await using lab = await FaultLab.make()
const known = new Map<OperationName, Step[]>()
for (const selection of process.argv.slice(2)) {
  const [operation = '', fault = '', pattern = ''] = selection.split('=')
  if (!isOperation(operation) || !isFault(fault)) throw new Error(`no ${operation} is broken off by ${fault}`)
  const steps = known.get(operation) ?? (await stepsOf(lab, operation))
  known.set(operation, steps)
  for (const step of steps) {
    const where = `${step.when} ${step.step}${step.nth === 0 ? '' : ` (${step.nth + 1})`}`
    if (isEnding || !new RegExp(pattern).test(where)) continue
    const { outcome, failed, tookMs } = await playRound(lab, operation, fault, step)
    const line = `${failed ? 'FAILED ' : ''}${operation} | ${fault} | ${where} | ${outcome} | ${tookMs} ms`
    console.log(line.replaceAll('\n', ' ⏎ '))
  }
}

function isOperation(name: string): name is OperationName {
  return Object.hasOwn(operations, name)
}

function isFault(name: string): name is Fault {
  return faults.some((fault) => fault === name)
}
