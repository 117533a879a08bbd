import { expect, test } from 'vitest'
import { Joined } from './joined.ts'

test('who asks while a run is on its way shares the next, which begins when that is over, however it ends', async () => {
  const joined = new Joined<number, string>()
  const runs: PromiseWithResolvers<string>[] = []
  const before: unknown[] = []
  const run = (last?: string) => {
    before.push(last)
    const one = Promise.withResolvers<string>()
    runs.push(one)
    return one.promise
  }
  const first = joined.ask(1, run)
  const late = [joined.ask(1, run), joined.ask(1, run)]
  const other = joined.ask(2, run)
  expect(runs).toHaveLength(2)
  runs[1]?.resolve('another key')
  runs[0]?.reject(new Error('saw what was before'))
  await expect(first).rejects.toThrow('saw what was before')
  expect(await other).toBe('another key')
  expect(runs).toHaveLength(3)
  const latest = joined.ask(1, run)
  runs[2]?.resolve('saw what is now')
  expect(await Promise.all(late)).toEqual(['saw what is now', 'saw what is now'])
  await new Promise(setImmediate)
  runs[3]?.resolve('saw the last')
  expect(await latest).toBe('saw the last')
  expect(before).toEqual([undefined, undefined, undefined, 'saw what is now'])
})
