import { startProduct } from '../e2e/product.ts'
import { findSleeper } from '../e2e/sleep.cycles.ts'
import type { Soaked, SoakOptions } from './kind.ts'

const machines = 20

/** Twenty that sleep, woken at once: all of them wake, and the slowest takes at most three times the median. */
export async function soakWakes({ rounds }: SoakOptions): Promise<Soaked> {
  await using product = await startProduct()
  const lobby = async (line: string) => {
    const done = await product.lobby(line, { timeoutMs: 600_000 })
    if (done.status !== 0) throw new Error(`${line}: ${done.stderr}`)
  }
  await lobby('new m0 --image minimal --memory 512M --cpu 1 --disk 2G')
  const first = await findSleeper(product, 'm0')
  await first.startCounting()
  await lobby('sleep m0')
  await first.until('asleep')
  const all = [first]
  for (let number = 1; number < machines; number++) {
    await lobby(`cp m0 m${number}`)
    const copy = await findSleeper(product, `m${number}`)
    await copy.want('asleep')
    await copy.until('asleep')
    all.push(copy)
  }
  const soaked: Soaked = { passed: 0, failed: 0 }
  for (let round = 0; round < rounds; round++) {
    try {
      const startedAt = Date.now()
      const took = await Promise.all(
        all.map(async (machine) => {
          await machine.want('running')
          await machine.until('running')
          return Date.now() - startedAt
        }),
      )
      took.sort((one, other) => one - other)
      const [median, slowest] = [took[Math.floor(took.length / 2)] ?? 0, took.at(-1) ?? 0]
      for (const machine of all) await machine.compare()
      console.log(`round ${round + 1}/${rounds}: median ${median} ms, slowest ${slowest} ms`)
      if (slowest > 3 * median) throw new Error('the slowest takes more than three times the median')
      soaked.passed++
      await Promise.all(all.map((machine) => machine.want('asleep')))
      for (const machine of all) await machine.until('asleep')
    } catch (error) {
      soaked.failed++
      console.error(`round ${round + 1}/${rounds}: ${(error as Error).message}`)
    }
  }
  return soaked
}
