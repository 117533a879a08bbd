import { breakOff } from '../../vmhost/testing/faults/break-off.ts'
import { operations } from '../../vmhost/testing/faults/operations.ts'
import { faults } from '../../vmhost/testing/faults/rounds.ts'
import { setup as startPostgres } from '../postgres.setup.ts'
import type { Soaked, SoakOptions } from './kind.ts'

/** Every operation, broken off at each of its steps by every fault; see vmhost/testing/faults/. */
export async function soakFaults({ rounds, only }: SoakOptions): Promise<Soaked> {
  const all = Object.keys(operations).flatMap((operation) => faults.map((fault) => `${operation}=${fault}`))
  const chosen = only === '' ? all : all.filter((one) => only.startsWith(one)).map(() => only)
  if (chosen.length === 0) throw new Error(`--only is one of ${all.join(', ')}; and a pattern of steps, =PATTERN`)
  const stopPostgres = await startPostgres()
  const soaked: Soaked = { passed: 0, failed: 0 }
  try {
    for (let round = 0; round < rounds; round++) {
      await breakOff(chosen, (line) => {
        console.log(line)
        soaked[line.startsWith('FAILED ') ? 'failed' : 'passed']++
      })
    }
  } finally {
    await stopPostgres()
  }
  return soaked
}
