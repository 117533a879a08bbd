import { afterAll, beforeAll, describe, it } from 'vitest'
import { LedgerRounds } from './ledger.rounds.ts'

/** `npm run soak -- ledger` has the others, and a machine that switches itself off while nothing of Berth is there. */
const ROUNDS = 5

let rounds: LedgerRounds
beforeAll(async () => {
  rounds = await LedgerRounds.start()
})
afterAll(() => rounds?.[Symbol.asyncDispose]())

describe('the ledger', () => {
  it('has to the byte what a machine and its far side have counted, before anything happens', async () => {
    await rounds.agree()
  })

  it(`has it after vmhost, gateway and Postgres were killed at random, also while it fell asleep, ${ROUNDS} rounds`, async () => {
    const first = Date.now() % 100_000
    for (let round = 0; round < ROUNDS; round++) {
      await rounds.round(first + round).catch((cause: unknown) => {
        throw new Error(`round ${round}, seed ${first + round}`, { cause })
      })
    }
  }, 1_800_000)

  it('has to the second when the machine ran, in each of those runs', async () => {
    await rounds.switchOff()
  })
})
