import { startProduct } from '../e2e/product.ts'
import { findSleeper } from '../e2e/sleep.cycles.ts'
import type { Soaked, SoakOptions } from './kind.ts'
import { cyclesOf } from './rounds.ts'

export async function soakCycles({ rounds }: SoakOptions): Promise<Soaked> {
  await using product = await startProduct()
  const made = await product.lobby('new demo --image minimal --memory 512M --cpu 1 --disk 2G')
  if (made.status !== 0) throw new Error(`no machine to begin with: ${made.stderr}`)
  return await cyclesOf(await findSleeper(product, 'demo'), rounds)
}
