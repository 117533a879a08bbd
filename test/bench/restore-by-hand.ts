/**
 * A guest restored by hand from what Berth saved, or forked by hand, with QEMU's own means and nothing of Berth's
 * running: clone its disk, make the tap, exec QEMU with `-incoming`, `cont`, thaw, try what shall work every 20 ms
 * until it does. Forked, another that was restored before is stopped and migrated to a file first, and goes on.
 * Run in the product's mount namespace and a network namespace of its own; prints milliseconds as JSON.
 *
 *     node restore-by-hand.ts '{"memory": …, "disk": …, …}'
 */
import { execFileSync } from 'node:child_process'
import { closeSync, openSync, readFileSync, readSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { files, qemuArguments } from '../../vmhost/hypervisor/qemu-command.ts'
import { stateFile } from '../../vmhost/hypervisor/qemu-state.ts'
import { asObject, connectQmp, type QmpClient } from '../../vmhost/hypervisor/qmp.ts'
import { makeHostKey } from '../../vmhost/reconcile/identity.ts'
import type { SavedMemory } from '../../vmhost/storage/memory.ts'
import { type HandNetwork, makeFolder, makeTap, page, sshTrue, startQemu, untilSucceeds } from './hand.ts'

export type RestoreByHand = Required<HandNetwork> & {
  /** the folder of the saved memory, and the disk that belongs to it */
  memory: string
  disk: string
  /** all boot sets */
  boots: string
  /** a folder on the same filesystem to work in */
  directory: string
  /** the client's private key; its public half lies beside it */
  key: string
  /** what shall work: `ssh true`, or a page on this port */
  until: 'ssh' | { port: number }
  /** it was saved before it knew who it is */
  isNobody?: boolean
  /** of what was restored, which takes no time here, another is made */
  fork?: boolean
}

const HEARD_MS = 3_000

/** `saveMs`: of a fork, until the first goes on */
export type RestoredByHand = { totalMs: number; saveMs?: number }

async function restoreByHand(hand: RestoreByHand): Promise<RestoredByHand> {
  if (!hand.fork) {
    const startedAt = performance.now()
    await using _restored = await restore(hand, 0)
    return { totalMs: performance.now() - startedAt }
  }
  const memory = `${hand.directory}-saved`
  await using first = await restore(hand, 0)
  const disk = join(memory, 'root.raw')
  execFileSync('mkdir', ['-p', memory])
  execFileSync('cp', [join(hand.memory, 'saved.json'), memory])
  const startedAt = performance.now()
  await first.qmp.execute('stop')
  await first.qmp.execute('migrate-set-parameters', { 'max-bandwidth': 2 ** 40 })
  await first.qmp.execute('migrate', { uri: `exec:cat > ${join(memory, stateFile)}` })
  while (asObject(await first.qmp.execute('query-migrate')).status !== 'completed') await sleep(2)
  execFileSync('cp', ['--reflink=always', first.disk, disk])
  await first.qmp.execute('cont')
  const saveMs = performance.now() - startedAt
  await using _second = await restore({ ...hand, directory: `${hand.directory}-2`, memory, disk, isNobody: false }, 1)
  const totalMs = performance.now() - startedAt
  execFileSync('rm', ['-r', memory])
  return { totalMs, saveMs }
}

type Restored = AsyncDisposable & { qmp: QmpClient; disk: string }

async function restore(hand: RestoreByHand, number: number): Promise<Restored> {
  await using made = new AsyncDisposableStack()
  const { directory, memory } = hand
  made.use(makeFolder(directory))
  const disk = join(directory, 'root.raw')
  execFileSync('cp', ['--reflink=always', hand.disk, disk])
  const tap = made.use(makeTap(hand, number))
  const saved = JSON.parse(readFileSync(join(memory, 'saved.json'), 'utf8')) as SavedMemory
  // `qemu <machine type> <accelerator>`
  const [, machineType = '', accelerator] = saved.stateVersion.split(' ')
  const boot = join(hand.boots, saved.bootSet)
  const spec = {
    ...saved,
    machineId: 999_999,
    directory,
    kernel: join(boot, 'vmlinuz'),
    initrd: join(boot, 'initrd'),
    tools: join(boot, 'tools.erofs'),
    disk,
    network: { tap: tap.name, mac: hand.mac },
  }
  const parameters = qemuArguments(spec, { accelerator: accelerator === 'kvm' ? 'kvm' : 'tcg', machineType })
  // Under the sandbox it could start no program.
  parameters.splice(parameters.indexOf('-sandbox'), 2)
  const state = join(memory, stateFile)
  const isPacked = startOf(state).equals(zstdMagic)
  const descriptor = isPacked ? undefined : openSync(state, 'r')
  parameters.push('-incoming', isPacked ? `exec:zstd -dc ${state}` : 'fd:3')
  const qemu = made.use(startQemu(spec, parameters, descriptor))
  if (descriptor !== undefined) closeSync(descriptor)
  const qmp = await connectQmp(join(directory, files.qmp), { timeoutMs: 60_000, onEvent: () => {} })
  made.defer(() => qmp.close())
  while (asObject(await qmp.execute('query-status')).status === 'inmigrate') await sleep(1)
  await qmp.execute('cont')
  const { agent } = qemu
  // It was saved with its filesystem frozen. What it had given back of its memory it gets when nobody waits for it.
  if (hand.isNobody) await agent.identify(identity(hand.key), { timeoutMs: 60_000 })
  else await agent.thaw({ timeoutMs: 60_000 })
  const { address, key, until } = hand
  await untilSucceeds(until === 'ssh' ? sshTrue(address, key, HEARD_MS) : page(address, until.port, HEARD_MS))
  const owned = made.move()
  return { qmp, disk, [Symbol.asyncDispose]: () => owned.disposeAsync() }
}

const zstdMagic = Buffer.from([0x28, 0xb5, 0x2f, 0xfd])

function startOf(path: string): Buffer {
  const start = Buffer.alloc(zstdMagic.length)
  const descriptor = openSync(path, 'r')
  readSync(descriptor, start)
  closeSync(descriptor)
  return start
}

function identity(key: string) {
  return {
    hostname: 'hand',
    loginUser: 'dev',
    authorizedKeys: [readFileSync(`${key}.pub`, 'utf8').trim()],
    environment: {},
    hostKey: makeHostKey('hand').privateKey,
    machineId: '0123456789abcdef0123456789abcdef',
  }
}

if (import.meta.main)
  console.log(JSON.stringify(await restoreByHand(JSON.parse(process.argv[2] ?? '') as RestoreByHand)))
