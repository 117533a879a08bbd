/**
 * 20 machines of 512 MiB that sleep, in the product as its README starts it, and 20 clients that come for one each at
 * the same moment: from the exec of `ssh NAME true` to its end.
 *
 *   node test/bench/wakes.ts [rounds, default 1] [machines, default 20]
 */
import { startProduct } from '../e2e/product.ts'
import { lobby, makeMany, openBook, sshTrue } from './product-lab.ts'
import { spread } from './ssh-lab.ts'

const rounds = Number(process.argv[2] ?? 1)
const count = Number(process.argv[3] ?? 20)

await using product = await startProduct()
const book = openBook()
const names = Array.from({ length: count }, (_, n) => `many${n}`)

await makeMany(product, names)
for (let round = 0; round < rounds; round++) {
  await lobby(product, `sleep ${names.join(' ')}`)
  book.add('hypervisors of those asleep', product.processes().hypervisors.length)
  const settledWakes = await Promise.allSettled(names.map((name) => sshTrue(product, name)))
  const tookMs: number[] = []
  for (const wake of settledWakes) {
    if (wake.status === 'fulfilled') tookMs.push(wake.value)
    else console.error(wake.reason)
  }
  book.add('wakes at once, failed', count - tookMs.length)
  const { median, max } = spread(tookMs)
  book.add('wakes at once, median, ms', median)
  book.add('wakes at once, slowest, ms', max)
  book.add('wakes at once, slowest to median', max / median)
}
await book.close(`${count} wakes at once, ${rounds} rounds`)
