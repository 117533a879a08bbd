/**
 * One machine started by hand, with the files, the QEMU arguments and the identity that Berth uses, and nothing of
 * Berth's running: clone the disk, make the tap, exec QEMU, try `ssh true` every 20 ms until it succeeds. Run inside
 * the product's network and mount namespaces; prints the milliseconds it took.
 *
 *     node by-hand.ts '{"image": …, "boot": …, …}'
 */
import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { qemuArguments } from '../../vmhost/hypervisor/qemu-command.ts'
import { makeHostKey } from '../../vmhost/reconcile/identity.ts'
import { type HandNetwork, makeFolder, makeTap, sshTrue, startQemu, untilSucceeds } from './hand.ts'

const HEARD_MS = 200

export type ByHand = HandNetwork & {
  /** raw image to clone, folder of kernel, initrd and tools disk, folder on the same filesystem to work in */
  image: string
  boot: string
  directory: string
  accelerator: 'kvm' | 'tcg'
  cpus: number
  memoryBytes: number
  diskBytes: number
  commandLine: string
  /** the client's private key; its public half lies beside it */
  key: string
}

async function startByHand(hand: ByHand): Promise<number> {
  const { directory, boot, cpus, memoryBytes, commandLine, mac } = hand
  const startedAt = performance.now()
  using _folder = makeFolder(directory)
  const disk = join(directory, 'root.raw')
  execFileSync('cp', ['--reflink=always', hand.image, disk])
  execFileSync('truncate', ['-s', String(hand.diskBytes), disk])
  using tap = makeTap(hand)
  const spec = {
    machineId: 999_999,
    directory,
    cpus,
    memoryBytes,
    kernel: join(boot, 'vmlinuz'),
    initrd: join(boot, 'initrd'),
    tools: join(boot, 'tools.erofs'),
    commandLine,
    disk,
    network: { tap: tap.name, mac },
  }
  await using qemu = startQemu(spec, qemuArguments(spec, { accelerator: hand.accelerator }))
  const identified = qemu.agent.ready({ timeoutMs: 120_000 }).then(() =>
    qemu.agent.identify({
      hostname: 'hand',
      loginUser: 'dev',
      authorizedKeys: [readFileSync(`${hand.key}.pub`, 'utf8').trim()],
      environment: {},
      hostKey: makeHostKey('hand').privateKey,
      machineId: '0123456789abcdef0123456789abcdef',
    }),
  )
  identified.catch(() => {})
  await untilSucceeds(sshTrue(hand.address, hand.key, HEARD_MS), identified)
  return performance.now() - startedAt
}

if (import.meta.main) console.log((await startByHand(JSON.parse(process.argv[2] ?? '') as ByHand)).toFixed(1))
