import { expect, test } from 'vitest'
import { settle } from './settling.ts'
import { Slots } from './slots.ts'

test('a machine that is up yields while others come up, after the time to sign in, and not longer', {
  timeout: 60_000,
}, async () => {
  const slots = new Slots(1)
  const slot = await slots.acquire(new AbortController().signal)
  const said: [boolean, number][] = []
  const since = performance.now()
  const yielded = Promise.withResolvers<void>()
  const yieldToOthers = async (yields: boolean) => {
    said.push([yields, performance.now() - since])
    yielded.resolve()
  }
  const settled = settle({ yieldToOthers }, slots, () => false)
  await yielded.promise
  expect(said).toEqual([[true, expect.any(Number)]])
  expect(said[0]?.[1]).toBeGreaterThan(5_000)
  slot[Symbol.dispose]()
  await settled
  expect(said.map(([yields]) => yields)).toEqual([true, false])
})
