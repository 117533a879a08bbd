/**
 * 20 machines of 512 MiB on a server that has 6 GiB for them and for Berth: after 5 idle minutes each is reached.
 *
 * A process takes all memory that this machine has available but 6 GiB, and keeps it: memory is as short for the product,
 * started as its README says, as on a small server, and what the kernel tells it is true. That process is the first to
 * go should the kernel have to end something, and then nothing was shown. It wants a machine that does nothing else.
 *
 *   node test/bench/crowd.ts [machines, default 20] [GiB, default 6] [idle seconds, default 300]
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { setTimeout as wait } from 'node:timers/promises'
import { startProduct } from '../e2e/product.ts'
import { MIB, makeMany, openBook, pssBytes, sshTrue } from './product-lab.ts'

const count = Number(process.argv[2] ?? 20)
const memoryMiB = Number(process.argv[3] ?? 6) * 1024
const idleSeconds = Number(process.argv[4] ?? 300)
const LOOK_MS = 500

const book = openBook()
const taken = await takeMemory(availableBytes() - memoryMiB * MIB)
try {
  await using product = await startProduct()
  let leastBytes = availableBytes()
  const watch = setInterval(() => {
    leastBytes = Math.min(leastBytes, availableBytes())
  }, LOOK_MS)
  const names = Array.from({ length: count }, (_, n) => `crowd${n}`)
  await makeMany(product, names)
  await wait(idleSeconds * 1000)
  const { hypervisors } = product.processes()
  book.add('of a crowd awake', hypervisors.length)
  book.add('held by its hypervisors, MiB', hypervisors.reduce((sum, pid) => sum + pssBytes(pid), 0) / MIB)
  let failed = 0
  for (const name of names) {
    try {
      book.add('ssh true to one of a crowd, ms', await sshTrue(product, name))
    } catch (error) {
      console.error(error)
      failed++
    }
  }
  clearInterval(watch)
  book.add('of a crowd not reached', failed)
  book.add('least memory left beside a crowd, MiB', leastBytes / MIB)
  if (taken.exitCode !== null || taken.signalCode !== null)
    throw new Error('there was more memory than there should be')
} finally {
  taken.kill('SIGKILL')
}
await book.close(`${count} machines on ${memoryMiB} MiB, idle for ${idleSeconds} s`)

function availableBytes(): number {
  return Number(/^MemAvailable:\s+(\d+)/m.exec(readFileSync('/proc/meminfo', 'utf8'))?.[1]) * 1024
}

/** @returns a process that holds so much memory until it is killed */
async function takeMemory(bytes: number): Promise<ChildProcess> {
  if (bytes <= 0) throw new Error('this machine has less memory than the crowd shall have')
  const script = `
    require('fs').writeFileSync('/proc/self/oom_score_adj', '1000')
    const held = []
    for (let left = ${bytes}; left > 0; left -= 2 ** 28) held.push(Buffer.alloc(Math.min(left, 2 ** 28), 1))
    console.log('taken')
    setInterval(() => held.length, 60_000)`
  const child = spawn(process.execPath, ['-e', script], { stdio: ['ignore', 'pipe', 'inherit'] })
  await once(child.stdout, 'data')
  return child
}
