import { checkSynced, crashRound, settle, syncSomething } from '../e2e/crash.rounds.ts'
import { startProduct } from '../e2e/product.ts'
import type { Soaked, SoakOptions } from './kind.ts'

/** Rounds of kill -9 at random moments; see test/e2e/crash.rounds.ts. */
export async function soakKills({ rounds, seed }: SoakOptions): Promise<Soaked> {
  await using product = await startProduct()
  const made = await product.lobby('new keep --image minimal --memory 512M --cpu 1 --disk 2G')
  if (made.status !== 0) throw new Error(`no machine to begin with: ${made.stderr}`)
  const soaked: Soaked = { passed: 0, failed: 0 }
  for (let round = 0; round < rounds; round++) {
    const startedAt = Date.now()
    let killed: string[] = []
    try {
      await syncSomething(product, round)
      killed = await crashRound(product, seed + round)
      await settle(product)
      const failed = await product.sql()<{ name: string }[]>`select name from machines where observed_state = 'failed'`
      for (const { name } of failed) {
        const restarted = await product.lobby(`restart ${name}`)
        if (restarted.status !== 0) throw new Error(`restart ${name}: ${restarted.stderr}`)
      }
      await settle(product)
      await checkSynced(product)
      soaked.passed++
      console.log(`round ${round + 1}/${rounds}: killed ${killed.join(', ')}, ${Date.now() - startedAt} ms`)
    } catch (error) {
      soaked.failed++
      console.error(
        `round ${round + 1}/${rounds}, seed ${seed + round}, killed ${killed.join(', ')}: ${(error as Error).message}`,
      )
    }
  }
  return soaked
}
