import { setTimeout as sleep } from 'node:timers/promises'
import type { FaultLab, Step } from './lab.ts'
import { type Operation, type OperationName, operations, type UnderTest } from './operations.ts'

/**
 * One operation, broken off at one step, and made good.
 *
 *     vmhost      kill -9 of the vmhost
 *     hypervisor  kill -9 of every hypervisor; the vmhost goes on
 *     power       all of it, and what was not synced is lost
 *     full        not a block is left in the store until it has come to its end, or says that it cannot
 *     beneath     the same of the filesystem under the store's volume, which others have filled
 */
export const faults = ['vmhost', 'hypervisor', 'power', 'full', 'beneath'] as const
export type Fault = (typeof faults)[number]

export type Round = {
  readonly operation: OperationName
  readonly fault: Fault
  readonly step: Step
  /** in a few words */
  readonly outcome: string
  readonly failed: boolean
  readonly tookMs: number
}

/** The steps of an operation that nothing happens to, each with the moments at which it is broken off. */
export async function stepsOf(lab: FaultLab, operation: OperationName): Promise<Step[]> {
  const { ask, over, check, remove } = await prepare(lab, operation)
  const round = lab.count()
  await ask()
  await over()
  await settled(lab)
  const counted = lab.counted(round)
  lab.count()
  await check({ lose: false, fail: false })
  await remove()
  // Of a file that is written in many pieces, the first and the last.
  const isBetween = ({ step, nth }: { step: string; nth: number }) =>
    /^writev? /.test(step) && nth > 0 && counted.some((other) => other.step === step && other.nth > nth)
  return counted
    .filter((step) => !isBetween(step))
    .flatMap((step) => [
      { ...step, when: 'before' as const },
      // What was sent is on its way; of everything else, the next step's before is this one's after.
      ...(/^(hypervisor|agent|database|start of)/.test(step.step) ? [{ ...step, when: 'after' as const }] : []),
    ])
}

export async function playRound(lab: FaultLab, operation: OperationName, fault: Fault, step: Step): Promise<Round> {
  const startedAt = Date.now()
  const said = (outcome: string, failed = false): Round => ({
    operation,
    fault,
    step,
    outcome,
    failed,
    tookMs: Date.now() - startedAt,
  })
  const test = await prepare(lab, operation)
  try {
    lab.count(step)
    await test.ask()
    const over = test.over().then(() => settled(lab))
    over.catch(() => {})
    if (!(await lab.reached(over))) {
      lab.count()
      await test.check({ lose: false, fail: false })
      await test.remove()
      return said('did not come to this step')
    }
    // What was sent before it arrives.
    if (step.when === 'after') await sleep(100)
    await lab.haveThemWrite()
    let met = ''
    let isGivenUp = false
    switch (fault) {
      case 'vmhost':
        await lab.killVmhost()
        await lab.start()
        break
      case 'hypervisor':
        await lab.killHypervisors()
        lab.goOn()
        break
      case 'power':
        await lab.cutPower()
        await lab.start()
        break
      case 'beneath':
      case 'full': {
        lab.fill(fault)
        lab.goOn()
        const enough = new AbortController()
        const told = await Promise.race([over.then(() => 'went through; '), troubleOf(test, enough.signal)])
        enough.abort()
        met = told
        const wrong = told === '' ? [] : (await lab.leftovers()).filter((one) => /\.new|\.gone|\.sock/.test(one))
        if (wrong.length > 0) met += `left while full: ${wrong.join(', ')}; `
        lab.empty()
        if (fault === 'beneath') await lab.goesOn()
        if (told.startsWith('said (') && test.giveUp) isGivenUp = true
        break
      }
    }
    await (isGivenUp ? test.giveUp?.() : test.over())
    await settled(lab)
    // What was found at first may have been from before.
    if (!isGivenUp) await test.over()
    const may = {
      lose: fault === 'hypervisor' || fault === 'power',
      fail: ['full', 'beneath', 'hypervisor'].includes(fault),
    }
    const outcome = await test.check(may)
    await settled(lab)
    await test.remove()
    const left = await lab.leftovers()
    if (left.length > 0) return said(`${met}${outcome}; left: ${left.join(', ')}`, true)
    return said(`${met}${outcome}`)
  } catch (error) {
    lab.empty()
    const { message } = error as Error
    return said(message, true)
  }
}

const prepare = (lab: FaultLab, operation: OperationName) => (operations[operation] as Operation)(lab)

/** Nothing is under way any more that the operation began. */
async function settled(lab: FaultLab): Promise<void> {
  for (const deadline = Date.now() + settleMostMs; (await lab.leftovers()).length > 0 && Date.now() < deadline; ) {
    await sleep(50)
  }
}

/** @returns what is said of it within the time; nothing when it is neither over then nor said to be in trouble */
async function troubleOf(test: UnderTest, enough: AbortSignal): Promise<string> {
  for (const deadline = Date.now() + fullMostMs; Date.now() < deadline && !enough.aborted; await sleep(50)) {
    const reason = await test.trouble()
    if (reason !== null) return `said (${reason}); `
  }
  return 'said nothing; '
}

const fullMostMs = 6_000
/** Longer than anything takes that goes on behind what was asked for. */
const settleMostMs = 6_000
