import { expect, test } from 'vitest'
import { Slots } from './slots.ts'

const forever = new AbortController().signal

test('no more than so many at once, the others in the order they came', async () => {
  const slots = new Slots(2)
  const order: number[] = []
  const first = await slots.acquire(forever)
  const second = await slots.acquire(forever)
  const waiting = [3, 4].map(async (number) => {
    const slot = await slots.acquire(forever)
    order.push(number)
    return slot
  })
  expect(slots.busyWithin(0)).toBe(true)
  first[Symbol.dispose]()
  // Given back twice is given back once.
  first[Symbol.dispose]()
  const third = await waiting[0]
  expect(order).toEqual([3])
  second[Symbol.dispose]()
  const fourth = await waiting[1]
  expect(order).toEqual([3, 4])
  third?.[Symbol.dispose]()
  fourth?.[Symbol.dispose]()
  expect(slots.busyWithin(0)).toBe(false)
})

test('who leaves the queue takes no slot with them', async () => {
  const slots = new Slots(1)
  const first = await slots.acquire(forever)
  const leave = new AbortController()
  const left = slots.acquire(leave.signal)
  const next = slots.acquire(forever)
  leave.abort()
  await expect(left).rejects.toThrow()
  first[Symbol.dispose]()
  const taken = await next
  taken[Symbol.dispose]()
  expect(slots.busyWithin(0)).toBe(false)
})
