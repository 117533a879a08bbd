/**
 * Sleep, wake and checkpoint, in the product as its README starts it, a machine of 512 MiB with 200 MiB in use:
 *   - from the client's exec to the end of `ssh NAME true`, and of a page, of a machine that sleeps, against the same
 *     restored by hand (restore-by-hand.ts) and asked directly, in turn
 *   - what its memory takes on the disk against what its guest used just before
 *   - for how long a program in it that speaks every 20 ms is silent at a checkpoint, against writing the checkpoint's
 *     memory once more to the same filesystem, until it is on the disk
 *   - for how long its filesystem is frozen then beyond the writing of its memory, as the vmhost saw it: from asking its
 *     agent to freeze it until the agent has said that it thawed
 *
 *   node test/bench/sleep.ts [rounds, default 5]
 */
import { execFile, spawn } from 'node:child_process'
import { join } from 'node:path'
import { setTimeout as wait } from 'node:timers/promises'
import { promisify } from 'node:util'
import { SERVER_ADDRESS, startProduct } from '../e2e/product.ts'
import {
  fill,
  findMachine,
  inside,
  lobby,
  MIB,
  openBook,
  restoreByHand,
  SIZE,
  settled,
  sshTrue,
  timed,
  usedBytes,
} from './product-lab.ts'

const run = promisify(execFile)
const rounds = Number(process.argv[2] ?? 5)
const PORT = 8000
const TICK_S = 0.02

await using product = await startProduct()
const book = openBook()

await lobby(product, `new napper ${SIZE}`)
const { id, address } = await findMachine(product, 'napper')
await settled(product, 'napper')
await fill(product, 'napper', 200 * MIB)
await serve()

const home = `machines/${id}`
const byHand = async (until: 'ssh' | { port: number }) =>
  (await restoreByHand(product, home, address, { until })).totalMs
await nap()
await byHand('ssh')
await sshTrue(product, 'napper')
for (let round = 0; round < rounds; round++) {
  const used = await atRest()
  book.add('used, MiB', used / MIB)
  book.add('sleep, ms', await nap())
  book.add('memory on disk to used', (await savedBytes(home)) / used)
  book.add('restored by hand, ssh, ms', await byHand('ssh'))
  book.add('wake over SSH, ms', await sshTrue(product, 'napper'))
  await atRest()
  await nap()
  book.add('restored by hand, page, ms', await byHand({ port: PORT }))
  book.add('wake over HTTPS, ms', await timed(page))
}
book.ratio('wake over SSH to by hand', 'wake over SSH, ms', 'restored by hand, ssh, ms')
book.ratio('wake over HTTPS to by hand', 'wake over HTTPS, ms', 'restored by hand, page, ms')

await atRest()
for (let round = 0; round < rounds + 1; round++) {
  const taken = await checkpoint()
  const writingMs = await write(`checkpoints/${taken.id}`)
  await lobby(product, `checkpoint rm napper ${taken.id}`)
  // Not the first: what is measured is warm.
  if (round === 0) continue
  book.add('silence at a checkpoint, ms', taken.silentMs)
  book.add('of that, standing still, ms', taken.stillMs)
  book.add('writing its memory, ms', writingMs)
  book.add('filesystem frozen, ms', taken.frozenMs)
  book.add('frozen beyond the memory write, ms', taken.frozenMs - taken.savingMs)
}
book.ratio('silence at a checkpoint to writing its memory', 'silence at a checkpoint, ms', 'writing its memory, ms')
await book.close(`Sleep, wake and checkpoint, ${rounds} rounds`)

/** A page on the primary port, for everybody. */
async function serve(): Promise<void> {
  const server = `use IO::Socket::INET; my $s = IO::Socket::INET->new(LocalPort => ${PORT}, Listen => 9, ReuseAddr => 1);
    while (my $c = $s->accept) { while (<$c>) { last if !/\\S/ } print $c "HTTP/1.0 200 OK\\r\\nContent-Length: 3\\r\\n\\r\\nup\\n"; close $c }`
  await inside(product, 'napper', `setsid -f perl -e '${server}' < /dev/null > /dev/null 2>&1`)
  await lobby(product, 'share set-public napper')
}

function page() {
  const resolve = ['--resolve', `napper.localhost:8443:${SERVER_ADDRESS}`]
  return product.outside('curl', ['-sSfk', '-m', '120', ...resolve, 'https://napper.localhost:8443/'])
}

async function nap(): Promise<number> {
  const startedAt = performance.now()
  await lobby(product, 'sleep napper')
  return performance.now() - startedAt
}

/** Awake, with all its memory and nothing left to do. @returns what it uses then */
async function atRest(): Promise<number> {
  for (let before = Number.NaN; ; ) {
    await wait(3_000)
    const now = await usedBytes(product, 'napper')
    if (Math.abs(now - before) < MIB) return now
    before = now
  }
}

async function savedBytes(folder: string): Promise<number> {
  const { stdout } = await run('du', ['-s', '-B1', join(product.storePath(folder), 'memory')])
  return Number(stdout.split('\t')[0])
}

type Taken = { id: number; silentMs: number; stillMs: number; frozenMs: number; savingMs: number }

async function checkpoint(): Promise<Taken> {
  const talk = `perl -e '$| = 1; print "x" while 1 + select undef, undef, undef, ${TICK_S}'`
  const talker = spawn(
    'ip',
    [...['netns', 'exec', product.outsideNamespace, 'ssh'], ...product.sshOptions, `napper@${SERVER_ADDRESS}`, talk],
    { cwd: product.home, stdio: ['ignore', 'pipe', 'inherit'] },
  )
  try {
    let silentMs = 0
    let heardAt: number | undefined
    talker.stdout.on('data', () => {
      const now = performance.now()
      if (heardAt !== undefined) silentMs = Math.max(silentMs, now - heardAt)
      heardAt = now
    })
    while (heardAt === undefined) await wait(50)
    await wait(1_000)
    silentMs = 0
    const taken = JSON.parse(await lobby(product, 'checkpoint napper --json')) as { id: number; still_ms: number }
    await wait(1_000)
    return { id: taken.id, silentMs, stillMs: taken.still_ms, ...(await heldUp(taken.id)) }
  } finally {
    talker.kill()
  }
}

/** What the vmhost has recorded of a checkpoint. */
async function heldUp(checkpointId: number): Promise<{ frozenMs: number; savingMs: number }> {
  const [event] = await product.sql()<{ frozenMs: number; savingMs: number }[]>`
    select (detail ->> 'frozenMs')::int as "frozenMs", (detail ->> 'savingMs')::int as "savingMs" from events
    where kind = 'machine.checkpoint-taken' and detail ->> 'checkpoint' = ${String(checkpointId)}`
  if (!event) throw new Error(`nothing was recorded of checkpoint ${checkpointId}`)
  return event
}

/** @returns ms that writing what a folder has of memory takes, read from the kernel's cache, until it is on the disk */
async function write(folder: string): Promise<number> {
  const from = join(product.storePath(folder), 'memory/state')
  const to = product.storePath('written')
  await run('dd', [`if=${from}`, 'of=/dev/null', 'bs=1M'])
  const startedAt = performance.now()
  await run('dd', [`if=${from}`, `of=${to}`, 'bs=1M', 'conv=fsync'])
  const tookMs = performance.now() - startedAt
  await run('rm', [to])
  return tookMs
}
