/**
 * What the hypervisors of idle machines of 512 MiB hold, after 5 idle minutes in the product as its README starts it,
 * beyond what their guests use; under emulation also less the 128 MiB that emulating takes.
 *
 *   node test/bench/idle.ts [machines, default 5] [idle seconds, default 300]
 */
import { setTimeout as wait } from 'node:timers/promises'
import { startProduct } from '../e2e/product.ts'
import { accelerator, findMachine, hypervisorOf, MIB, makeMany, openBook, pssBytes, usedBytes } from './product-lab.ts'

const count = Number(process.argv[2] ?? 5)
const idleSeconds = Number(process.argv[3] ?? 300)
const EMULATING_MIB = 128

await using product = await startProduct()
const book = openBook()
const names = Array.from({ length: count }, (_, n) => `idle${n}`)
const emulatingMiB = (await accelerator(product)) === 'tcg' ? EMULATING_MIB : 0
await makeMany(product, names)
await wait(idleSeconds * 1000)
for (const name of names) {
  // Before anybody comes: that it is asked makes it use more.
  const heldMiB = pssBytes(hypervisorOf(product, (await findMachine(product, name)).id)) / MIB
  const usedMiB = (await usedBytes(product, name)) / MIB
  book.add('an idle guest uses, MiB', usedMiB)
  book.add('its hypervisor holds, MiB', heldMiB)
  book.add('idle machine beyond its use and its emulation, MiB', heldMiB - usedMiB - emulatingMiB)
}
await book.close(`${count} machines, idle for ${idleSeconds} s`)
