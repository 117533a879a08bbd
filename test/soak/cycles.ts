import { startProduct } from '../e2e/product.ts'
import { Sleeper } from '../e2e/sleep.cycles.ts'
import type { Soaked, SoakOptions } from './kind.ts'

export async function soakCycles({ rounds }: SoakOptions): Promise<Soaked> {
  await using product = await startProduct()
  const made = await product.lobby('new demo --image minimal --memory 512M --cpu 1 --disk 2G')
  if (made.status !== 0) throw new Error(`no machine to begin with: ${made.stderr}`)
  const demo = await Sleeper.find(product, 'demo')
  await demo.startCounting()
  const soaked: Soaked = { passed: 0, failed: 0 }
  for (let round = 0; round < rounds; round++) {
    const startedAt = Date.now()
    try {
      await demo.cycle()
      soaked.passed++
      console.log(`cycle ${round + 1}/${rounds}: ${Date.now() - startedAt} ms`)
    } catch (error) {
      soaked.failed++
      console.error(`cycle ${round + 1}/${rounds}: ${(error as Error).message}`)
    }
  }
  return soaked
}
