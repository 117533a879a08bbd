/**
 * One machine started by hand, with the files, the QEMU arguments and the identity that Berth uses, and nothing of
 * Berth's running: clone the disk, make the tap, exec QEMU, try `ssh true` every 20 ms until it succeeds. Run inside
 * the product's network and mount namespaces; prints the milliseconds it took.
 *
 *     node by-hand.ts '{"image": …, "boot": …, …}'
 */
import { execFileSync, spawn, spawnSync } from 'node:child_process'
import { mkdirSync, readFileSync, rmSync } from 'node:fs'
import { connect } from 'node:net'
import { join } from 'node:path'
import { connectAgent } from '../../vmhost/guest/channel.ts'
import { files, qemuArguments } from '../../vmhost/hypervisor/qemu-command.ts'
import { makeHostKey } from '../../vmhost/reconcile/identity.ts'

export type ByHand = {
  /** raw image to clone, folder of kernel, initrd and tools disk, folder on the same filesystem to work in */
  image: string
  boot: string
  directory: string
  accelerator: 'kvm' | 'tcg'
  cpus: number
  memoryBytes: number
  diskBytes: number
  address: string
  /** the server's address on the tap */
  gateway: string
  mac: string
  commandLine: string
  /** the client's private key; its public half lies beside it */
  key: string
}

// Neither name nor network are Berth's, whose firewall drops what is no machine's.
const TAP = 'hand0'
const RETRY_MS = 20
const LIMIT_MS = 120_000

async function startByHand(hand: ByHand): Promise<number> {
  rmSync(hand.directory, { recursive: true, force: true })
  const startedAt = performance.now()
  mkdirSync(join(hand.directory, files.run), { recursive: true })
  const disk = join(hand.directory, 'root.raw')
  execFileSync('cp', ['--reflink=always', hand.image, disk])
  execFileSync('truncate', ['-s', String(hand.diskBytes), disk])
  execFileSync(
    'mkfifo',
    [`${files.consoleFifo}.in`, `${files.consoleFifo}.out`].map((name) => join(hand.directory, name)),
  )
  const drain = spawn('cat', [join(hand.directory, `${files.consoleFifo}.out`)], {
    stdio: ['ignore', 'ignore', 'inherit'],
  })
  execFileSync('ip', ['-batch', '-'], {
    input: [
      `tuntap add dev ${TAP} mode tap vnet_hdr`,
      `link set ${TAP} up`,
      `address replace ${hand.gateway}/32 dev ${TAP}`,
      `route replace ${hand.address}/32 dev ${TAP}`,
      `neighbour replace ${hand.address} lladdr ${hand.mac} dev ${TAP} nud permanent`,
    ].join('\n'),
  })
  const spec = {
    machineId: 999_999,
    directory: hand.directory,
    cpus: hand.cpus,
    memoryBytes: hand.memoryBytes,
    kernel: join(hand.boot, 'vmlinuz'),
    initrd: join(hand.boot, 'initrd'),
    tools: join(hand.boot, 'tools.erofs'),
    commandLine: hand.commandLine,
    disk,
    network: { tap: TAP, mac: hand.mac },
  }
  const qemu = spawn('qemu-system-x86_64', qemuArguments(spec, { accelerator: hand.accelerator }), {
    cwd: hand.directory,
    stdio: ['ignore', 'ignore', 'inherit'],
  })
  const agent = connectAgent(join(hand.directory, files.agent))
  try {
    const identified = agent.ready({ timeoutMs: LIMIT_MS }).then(() =>
      agent.identify({
        hostname: 'hand',
        loginUser: 'dev',
        authorizedKeys: [readFileSync(`${hand.key}.pub`, 'utf8').trim()],
        environment: {},
        hostKey: makeHostKey('hand').privateKey,
        machineId: '0123456789abcdef0123456789abcdef',
      }),
    )
    identified.catch(() => {})
    const client = [
      ...[
        '-F',
        'none',
        '-o',
        'UserKnownHostsFile=/dev/null',
        '-o',
        'StrictHostKeyChecking=no',
        '-o',
        'IdentitiesOnly=yes',
      ],
      ...[
        '-o',
        'BatchMode=yes',
        '-o',
        'LogLevel=QUIET',
        '-o',
        'ConnectTimeout=30',
        '-i',
        hand.key,
        `dev@${hand.address}`,
        'true',
      ],
    ]
    // A SYN that nobody hears costs a second: SSH is tried once the port is open.
    while (!((await listens(hand.address)) && (await succeeds('ssh', client)))) {
      await Promise.race([identified, new Promise((resolve) => setTimeout(resolve, RETRY_MS))])
      if (performance.now() - startedAt > LIMIT_MS) throw new Error(`not ready in ${LIMIT_MS} ms`)
    }
    return performance.now() - startedAt
  } finally {
    agent.close()
    qemu.kill('SIGKILL')
    drain.kill()
    await new Promise((resolve) =>
      qemu.exitCode === null && qemu.signalCode === null ? qemu.once('exit', resolve) : resolve(0),
    )
    spawnSync('ip', ['link', 'delete', TAP])
    rmSync(hand.directory, { recursive: true, force: true })
  }
}

function listens(address: string): Promise<boolean> {
  const socket = connect({ host: address, port: 22 }).setTimeout(200)
  return new Promise<boolean>((resolve) => {
    socket.once('connect', () => resolve(true))
    for (const event of ['error', 'timeout']) socket.once(event, () => resolve(false))
  }).finally(() => socket.destroy())
}

/** Not spawnSync: the identity goes out between two tries. */
function succeeds(program: string, parameters: string[]): Promise<boolean> {
  const child = spawn(program, parameters, { stdio: 'ignore' })
  return new Promise((resolve) => child.once('close', (status) => resolve(status === 0)))
}

if (import.meta.main) console.log((await startByHand(JSON.parse(process.argv[2] ?? '') as ByHand)).toFixed(1))
