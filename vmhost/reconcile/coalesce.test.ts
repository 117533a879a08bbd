import { expect, test } from 'vitest'
import { coalesce } from './coalesce.ts'

test('asked for while it runs, however often, it runs once more, and everybody waits for that', async () => {
  const runs: PromiseWithResolvers<void>[] = []
  const ask = coalesce(() => {
    const run = Promise.withResolvers<void>()
    runs.push(run)
    return run.promise
  })
  const asked = [ask(), ask(), ask()]
  expect(runs).toHaveLength(1)
  runs[0]?.resolve()
  await expect.poll(() => runs).toHaveLength(2)
  runs[1]?.resolve()
  await Promise.all(asked)
  expect(runs).toHaveLength(2)
})

test('a failure reaches who asked, and the next call runs again', async () => {
  let runs = 0
  const ask = coalesce(async () => {
    if (++runs === 1) throw new Error('away')
  })
  await expect(ask()).rejects.toThrow('away')
  await ask()
  expect(runs).toBe(2)
})
