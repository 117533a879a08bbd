/**
 * Machines that begin as others, in the product as its README starts it, 512 MiB with 200 MiB in use, each until a
 * finished `ssh NAME true`:
 *   - `cp` of a machine that runs, against forking one by hand (stop, migrate to a file, go on, restore; see
 *     restore-by-hand.ts), against restoring alone, and against booting the same disk by hand
 *   - `new` of an image that there is a template of, against restoring that template by hand, its identity told, and
 *     against booting by hand what it makes
 *
 *   node test/bench/fork.ts [rounds, default 5]
 */
import { startProduct } from '../e2e/product.ts'
import {
  bootByHand,
  fill,
  findMachine,
  lobby,
  MIB,
  made,
  openBook,
  restoreByHand,
  SIZE,
  settled,
  templateMade,
} from './product-lab.ts'

const rounds = Number(process.argv[2] ?? 5)

await using product = await startProduct()
const book = openBook()

await lobby(product, `new origin ${SIZE}`)
const { address } = await findMachine(product, 'origin')
await settled(product, 'origin')
await fill(product, 'origin', 200 * MIB)
// What the fork by hand begins with, and the disk to boot from; stays as it is.
const { id } = JSON.parse(await lobby(product, 'checkpoint origin --json')) as { id: number }
const kept = `checkpoints/${id}`
const disk = `${product.dataDirectory}/store/${kept}/root.raw`

const forkByHand = () => restoreByHand(product, kept, address, { until: 'ssh', fork: true })
const restored = async () => (await restoreByHand(product, kept, address, { until: 'ssh' })).totalMs

await makeAndRemove('cp origin warm-up', 'warm-up')
await forkByHand()
for (let round = 0; round < rounds; round++) {
  book.add('cp, ms', await makeAndRemove(`cp origin fork${round}`, `fork${round}`))
  const { totalMs, saveMs } = await forkByHand()
  book.add('forked by hand, ms', totalMs)
  book.add('of that, saving, ms', saveMs ?? Number.NaN)
  book.add('restored by hand, ms', await restored())
  book.add('booted by hand, ms', await bootByHand(product, 'origin', disk))
}
book.ratio('fork to by hand', 'cp, ms', 'forked by hand, ms')
book.ratio('fork to restoring by hand', 'cp, ms', 'restored by hand, ms')
book.ratio('fork to booting', 'cp, ms', 'booted by hand, ms')

const template = await templateMade(product)
const isNobody = true
await makeAndRemove(`new fresh ${SIZE}`, 'fresh')
await restoreByHand(product, template, undefined, { until: 'ssh', isNobody })
for (let round = 0; round < rounds; round++) {
  book.add('new, ms', await makeAndRemove(`new fresh${round} ${SIZE}`, `fresh${round}`))
  const { totalMs } = await restoreByHand(product, template, undefined, { until: 'ssh', isNobody })
  book.add('template restored by hand, ms', totalMs)
  book.add('booted by hand, fresh, ms', await bootByHand(product, 'origin'))
}
book.ratio('new to restoring by hand', 'new, ms', 'template restored by hand, ms')
book.ratio('new to booting', 'new, ms', 'booted by hand, fresh, ms')
await book.close(`Forks, ${rounds} rounds`)

/** @returns ms until it answers; nothing is left of it */
async function makeAndRemove(line: string, name: string): Promise<number> {
  const tookMs = await made(product, line, name)
  await lobby(product, `rm --now ${name}`)
  return tookMs
}
