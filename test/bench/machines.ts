/**
 * Whole machines, in the product as its README starts it:
 *   - `new` until SSH works, against the same started by hand (by-hand.ts), in turn
 *   - `ssh NAME true` through the gateway, warm and first after a restart of the gateway, against the guest directly
 *   - 20 `new` at once, 20 `ssh` at once to one machine, 100 in a row
 *   - memory of the idle gateway
 *
 *   node test/bench/machines.ts [rounds, default 5]
 */
import { SERVER_ADDRESS, startProduct } from '../e2e/product.ts'
import { bootByHand, findMachine, lobby, MIB, made, openBook, SIZE, timed } from './product-lab.ts'
import { rssBytes } from './ssh-lab.ts'

const rounds = Number(process.argv[2] ?? 5)
const AT_ONCE = 20

await using product = await startProduct()
const book = openBook()

await made(product, `new warm-up ${SIZE}`, 'warm-up')
await bootByHand(product, 'warm-up')
for (let round = 0; round < rounds; round++) {
  book.add('new, ms', await made(product, `new round${round} ${SIZE}`, `round${round}`))
  await lobby(product, `rm --now round${round}`)
  book.add('by hand, ms', await bootByHand(product, 'warm-up'))
}
book.ratio('new to by hand', 'new, ms', 'by hand, ms')

const guest = await directly('warm-up')
await timed(() => guest.ssh())
await timed(() => product.ssh([`warm-up@${SERVER_ADDRESS}`, 'true']))
for (let round = 0; round < rounds * 2; round++) {
  book.add('ssh true, pooled, ms', await timed(() => product.ssh([`warm-up@${SERVER_ADDRESS}`, 'true'])))
  book.add('ssh true, directly, ms', await timed(() => guest.ssh()))
}
book.ratio('ssh true, pooled to direct', 'ssh true, pooled, ms', 'ssh true, directly, ms')
for (let round = 0; round < rounds; round++) {
  await restartGateway()
  book.add('ssh true, first, ms', await timed(() => product.ssh([`warm-up@${SERVER_ADDRESS}`, 'true'])))
  book.add('ssh true, directly again, ms', await timed(() => guest.ssh()))
}
book.ratio('ssh true, first to direct', 'ssh true, first, ms', 'ssh true, directly again, ms')
await restartGateway()
for (let round = 0; round < rounds; round++) {
  await product.stop()
  const startedAt = performance.now()
  await product.start()
  book.add('start to ready, s', (performance.now() - startedAt) / 1000)
}
book.add('gateway, idle, MiB', rssBytes(product.processes().gateway ?? 0) / MIB)

const burst = performance.now()
const machines = Array.from({ length: AT_ONCE }, (_, n) => `many${n}`)
const twenty = await Promise.all(machines.map((name) => product.lobby(`new ${name} ${SIZE}`, { timeoutMs: 600_000 })))
for (const { status, stdout, stderr } of twenty) if (status !== 0) console.error(`new failed: ${stdout}${stderr}`)
book.add('20 new at once, failed', twenty.filter(({ status }) => status !== 0).length)
book.add('20 new at once, s', (performance.now() - burst) / 1000)
await Promise.all(machines.map((name) => product.lobby(`rm --now ${name}`)))

const sessions = await Promise.all(machines.map((_, n) => product.ssh([`warm-up@${SERVER_ADDRESS}`, `echo ${n}`])))
book.add('20 ssh at once, failed', sessions.filter(({ stdout }, n) => stdout.trim() !== String(n)).length)
let failed = 0
for (let n = 0; n < 100; n++) if ((await product.ssh([`warm-up@${SERVER_ADDRESS}`, 'true'])).status !== 0) failed++
book.add('100 ssh in a row, failed', failed)

await book.close(`Machines, ${rounds} rounds`)

/** A machine's sshd without the gateway: from the server itself, with the owner's key. */
async function directly(name: string) {
  const { address } = await findMachine(product, name)
  const options = product.sshOptions.filter(
    (word, index, all) => !word.startsWith('Port=') && !all[index + 1]?.startsWith('Port='),
  )
  return {
    ssh: () =>
      product.outside('nsenter', [
        `--net=/run/netns/${product.serverNamespace}`,
        'ssh',
        ...options,
        `dev@${address}`,
        'true',
      ]),
  }
}

async function restartGateway() {
  const { gateway } = product.processes()
  if (gateway) process.kill(gateway, 'SIGKILL')
  // Its port answers again when a banner comes, which makes no upstream connection.
  for (;;) {
    const { stdout } = await product.outside('bash', ['-c', `exec 3<>/dev/tcp/${SERVER_ADDRESS}/2222 && head -c 7 <&3`])
    if (stdout === 'SSH-2.0') return
    await new Promise((resolve) => setTimeout(resolve, 100))
  }
}
