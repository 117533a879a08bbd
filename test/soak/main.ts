/**
 * `npm run soak [-- --rounds 50 --seed N]`: rounds of kill -9 at random moments, fifty unless told otherwise.
 * Ends with `N passed, N failed`; a failed round prints its seed, which plays it again.
 */
import { parseArgs } from 'node:util'
import { checkSynced, crashRound, settle, syncSomething } from '../e2e/crash.rounds.ts'
import { startProduct } from '../e2e/product.ts'

const { values } = parseArgs({
  options: {
    rounds: { type: 'string', default: '50' },
    seed: { type: 'string', default: String(Date.now() % 100_000) },
  },
})
const rounds = Number(values.rounds)
const seed = Number(values.seed)
if (!Number.isInteger(rounds) || rounds < 1 || !Number.isInteger(seed)) {
  console.error('usage: npm run soak -- [--rounds 50] [--seed N], both whole numbers')
  process.exit(2)
}

await using product = await startProduct()
const made = await product.lobby('new keep --image minimal --memory 512M --cpu 1 --disk 2G')
if (made.status !== 0) throw new Error(`no machine to begin with: ${made.stderr}`)

let passed = 0
let failed = 0
for (let round = 0; round < rounds; round++) {
  const startedAt = Date.now()
  let killed: string[] = []
  try {
    await syncSomething(product, round)
    killed = await crashRound(product, seed + round)
    await settle(product)
    for (const { name } of await product.sql()<
      { name: string }[]
    >`select name from machines where observed_state = 'failed'`) {
      const restarted = await product.lobby(`restart ${name}`)
      if (restarted.status !== 0) throw new Error(`restart ${name}: ${restarted.stderr}`)
    }
    await settle(product)
    await checkSynced(product)
    passed++
    console.log(`round ${round + 1}/${rounds}: killed ${killed.join(', ')}, ${Date.now() - startedAt} ms`)
  } catch (error) {
    failed++
    console.error(
      `round ${round + 1}/${rounds}, seed ${seed + round}, killed ${killed.join(', ')}: ${(error as Error).message}`,
    )
  }
}
console.log(`${passed} passed, ${failed} failed`)
process.exitCode = failed === 0 ? 0 : 1
