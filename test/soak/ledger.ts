import { LedgerRounds } from '../e2e/ledger.rounds.ts'
import type { Soaked, SoakOptions } from './kind.ts'

/** Rounds of kill -9 while a machine talks; see test/e2e/ledger.rounds.ts. */
export async function soakLedger({ rounds, seed }: SoakOptions): Promise<Soaked> {
  await using ledger = await LedgerRounds.start()
  const soaked: Soaked = { passed: 0, failed: 0 }
  const counted = async (what: string, work: () => Promise<unknown>) => {
    const startedAt = Date.now()
    try {
      const story = await work()
      soaked.passed++
      console.log(`${what}: ${story ?? 'all accounts agree'}, ${Date.now() - startedAt} ms`)
    } catch (error) {
      soaked.failed++
      console.error(`${what}: ${(error as Error).message}`)
    }
  }
  console.log(`seed ${seed}`)
  for (let round = 0; round < rounds; round++) {
    await counted(`round ${round + 1}/${rounds}, seed ${seed + round}`, () => ledger.round(seed + round))
  }
  await counted('switched off unseen', () => ledger.switchOffUnseen())
  await counted('time', async () => `off by ${(await ledger.time()).join(', ')} ms a run`)
  return soaked
}
