import { describe, expect, it, test } from 'vitest'
import { keepPlace, settle } from './settling.ts'
import { Slots } from './slots.ts'

test('a machine that is up yields while others come up and are signed in to, after its own time for that', async () => {
  const signInMs = 300
  const slots = new Slots(1)
  const slot = await slots.acquire(new AbortController().signal)
  const said: [boolean, number][] = []
  const since = performance.now()
  const yielded = Promise.withResolvers<void>()
  const yieldToOthers = async (yields: boolean) => {
    said.push([yields, performance.now() - since])
    yielded.resolve()
  }
  const settled = settle({ yieldToOthers }, slots, () => false, signInMs)
  await yielded.promise
  expect(said).toEqual([[true, expect.any(Number)]])
  expect(said[0]?.[1]).toBeGreaterThan(signInMs - 5)
  const freedAt = performance.now() - since
  slot[Symbol.dispose]()
  await settled
  expect(said.map(([yields]) => yields)).toEqual([true, false])
  expect(said[1]?.[1]).toBeGreaterThan(freedAt + signInMs - 5)
})

describe('the place of a machine that goes on from a template', () => {
  const place = () => ({
    isFree: false,
    [Symbol.dispose]() {
      this.isFree = true
    },
  })

  it('is kept until somebody has reached the machine', async () => {
    const slot = place()
    const answers = [false, true]
    const asked: boolean[] = []
    await keepPlace(
      slot,
      async () => {
        asked.push(slot.isFree)
        return answers.shift() ?? true
      },
      () => false,
    )
    expect([asked, slot.isFree]).toEqual([[false, false], true])
  })

  it('is given back when the machine is over, and when nobody comes or that cannot be told', async () => {
    const over = place()
    await keepPlace(
      over,
      async () => false,
      () => true,
    )
    const away = place()
    await keepPlace(
      away,
      () => Promise.reject(new Error('the database is away')),
      () => false,
      1,
    )
    expect([over.isFree, away.isFree]).toEqual([true, true])
  })
})
