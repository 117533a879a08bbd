import type { Sleeper } from '../e2e/sleeper.ts'
import type { Soaked } from './kind.ts'

/** Has a machine count, then sleep and wake so many times, and says what came of each. */
export async function cyclesOf(sleeper: Sleeper, rounds: number): Promise<Soaked> {
  await sleeper.startCounting()
  const soaked: Soaked = { passed: 0, failed: 0 }
  for (let round = 1; round <= rounds; round++) {
    try {
      const { asleepMs, awakeMs, savedBytes } = await sleeper.cycle()
      soaked.passed++
      const MiB = Math.round(savedBytes / 2 ** 20)
      console.log(`cycle ${round}/${rounds}: asleep in ${asleepMs} ms (${MiB} MiB), awake in ${awakeMs} ms`)
    } catch (error) {
      soaked.failed++
      console.error(`cycle ${round}/${rounds}: ${(error as Error).message}`)
    }
  }
  return soaked
}
