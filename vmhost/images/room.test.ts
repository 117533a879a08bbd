import { setImmediate as turn } from 'node:timers/promises'
import { expect, test } from 'vitest'
import { Room } from './room.ts'

const GiB = 2 ** 30
const { signal } = new AbortController()

function server(freeBytes: number) {
  const disk = { freeBytes }
  const room = new Room(async () => ({
    ...{ totalBytes: 100 * GiB, freeBytes: disk.freeBytes, volumeFreeBytes: disk.freeBytes },
    ...{ underlyingFreeBytes: undefined, reserveBytes: GiB },
  }))
  return { disk, room }
}

test('two that do not fit in together come one after the other, and each sees what the one before has left', async () => {
  const { disk, room } = server(11 * GiB)
  const first = await room.take(6 * GiB, signal)
  let waits = 0
  let isGiven = false
  const second = room.take(6 * GiB, signal, () => {
    waits++
  })
  second.then(() => {
    isGiven = true
  })
  await expect.poll(() => waits).toBe(1)
  expect(isGiven).toBe(false)
  disk.freeBytes -= 4 * GiB
  first[Symbol.dispose]()
  using _second = await second
})

test('asked for at the same moment, they are not both given it', async () => {
  const { room } = server(11 * GiB)
  const given: Disposable[] = []
  const both = [1, 2].map(() => room.take(6 * GiB, signal).then((one) => given.push(one)))
  await Promise.race(both)
  for (let turns = 0; turns < 10; turns++) await turn()
  expect(given.length).toBe(1)
  given[0]?.[Symbol.dispose]()
  await Promise.all(both)
})

test('what never fits in is refused as soon as nobody else is at work, and says how much is left', async () => {
  const { room } = server(11 * GiB)
  await expect(room.take(20 * GiB, signal)).rejects.toMatchObject({
    code: 'storage.full',
    message: expect.stringMatching(/^The image needs 20.* on the server, and 10.* are left$/),
  })
  const first = await room.take(6 * GiB, signal)
  const large = room.take(20 * GiB, signal, () => first[Symbol.dispose]())
  await expect(large).rejects.toMatchObject({ code: 'storage.full' })
})

test('one that is given up while it waits keeps nobody from coming next', async () => {
  const { room } = server(11 * GiB)
  using _first = await room.take(6 * GiB, signal)
  const leave = new AbortController()
  await expect(room.take(6 * GiB, leave.signal, () => leave.abort())).rejects.toThrow(/abort/)
  using _small = await room.take(4 * GiB, signal)
})
