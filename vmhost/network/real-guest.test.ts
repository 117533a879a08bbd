import { execFile } from 'node:child_process'
import { chown, copyFile, mkdir, mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { testArtifacts } from '../../test/e2e/artifacts.ts'
import { connectAgent } from '../guest/channel.ts'
import { openDevices } from '../hypervisor/privileges.ts'
import { qemuArguments } from '../hypervisor/qemu-command.ts'
import { createLab, type Lab, NetworkProcess, Probe } from './testing/lab.ts'
import type { Attachment, MachineNetwork } from './types.ts'

const run = promisify(execFile)
const machine: MachineNetwork = { machineId: 1, address: '10.42.0.11', uid: 2_000_001 }
const neighbour: MachineNetwork = { machineId: 2, address: '10.42.0.12', uid: 2_000_002 }

let lab: Lab
let network: NetworkProcess
let directory: string
let internet: Probe, host: Probe

/** Runs a command line in the guest, as root: whoever is sold a machine has all of it. @returns its output, trimmed */
async function inGuest(commandLine: string): Promise<string> {
  const options = {
    IdentityFile: join(directory, 'key'),
    StrictHostKeyChecking: 'no',
    UserKnownHostsFile: '/dev/null',
    LogLevel: 'ERROR',
    // One handshake for all: an emulated guest needs seconds for one.
    ControlMaster: 'auto',
    ControlPath: join(directory, 'ssh'),
    ControlPersist: '300',
  }
  const words = Object.entries(options).flatMap(([name, value]) => ['-o', `${name}=${value}`])
  const destination = `root@${machine.address}`
  const child = await run('ip', [
    'netns',
    'exec',
    lab.host.name,
    'ssh',
    '-F',
    'none',
    ...words,
    destination,
    commandLine,
  ])
  return child.stdout.trim()
}

/** A real Linux guest: the minimal image under QEMU, taken through its control channel until its sshd answers. */
async function boot({ tap, mac }: Attachment): Promise<void> {
  const artifacts = await testArtifacts()
  const bootFiles = join(artifacts, 'boot', 'current')
  const disk = join(directory, 'root.raw')
  await mkdir(join(directory, 'run'))
  await run('mkfifo', [join(directory, 'console.in'), join(directory, 'console.out')])
  await run('cp', ['--reflink=auto', '--sparse=always', join(artifacts, 'images', 'minimal', 'root.raw'), disk])
  for (const name of ['vmlinuz', 'initrd', 'tools.erofs']) await copyFile(join(bootFiles, name), join(directory, name))
  for (const name of ['', 'run', 'console.in', 'console.out', 'root.raw'])
    await chown(join(directory, name), machine.uid, machine.uid)
  for (const name of ['key', 'host'])
    await run('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', join(directory, name)])
  const spec = {
    machineId: machine.machineId,
    directory,
    cpus: 1,
    memoryBytes: 512 * 2 ** 20,
    kernel: join(directory, 'vmlinuz'),
    initrd: join(directory, 'initrd'),
    commandLine: `console=hvc0 root=/dev/vda init=/exe/bin/exe-init rw ip=${machine.address}:10.42.0.1:10.42.0.1:255.255.0.0:demo:eth0:none:198.51.100.10:: mitigations=off`,
    disk,
    tools: join(directory, 'tools.erofs'),
    network: { tap, mac },
  }
  const privileges = [`--reuid=${machine.uid}`, `--regid=${machine.uid}`, '--clear-groups', '--bounding-set=-all', '--']
  const command = ['setpriv', ...privileges, 'qemu-system-x86_64', ...qemuArguments(spec, { accelerator: 'tcg' })]
  lab.host.spawn(['env', '-C', directory, ...command], ['inherit', 'inherit', 'inherit'])
  const agent = connectAgent(join(directory, 'run', 'agent.sock'))
  const listening = Promise.withResolvers<void>()
  agent.on((event) => {
    if (event.type === 'stage' && event.stage === 'sshd') listening.resolve()
  })
  await agent.ready({ timeoutMs: 100_000 })
  await agent.identify({
    hostname: 'demo',
    loginUser: 'dev',
    authorizedKeys: [(await readFile(join(directory, 'key.pub'), 'utf8')).trim()],
    environment: {},
    hostKey: await readFile(join(directory, 'host'), 'utf8'),
    machineId: '0123456789abcdef0123456789abcdef',
  })
  await listening.promise
  agent.close()
}

beforeAll(async () => {
  openDevices()
  directory = await mkdtemp(join(tmpdir(), 'berth-guest-'))
  lab = await createLab()
  network = new NetworkProcess(lab.host, {
    network: '10.42.0.0/16',
    allow: [],
    publicPorts: [{ protocol: 'tcp', port: 2222 }],
  })
  await network.call({ do: 'prepareHost' })
  await network.call({ do: 'startMetadata' })
  await network.call({ do: 'rename', address: machine.address, name: 'demo' })
  const [attachment] = await Promise.all(
    [machine, neighbour].map((one) => network.call({ do: 'ensureMachine', machine: one })),
  )
  await lab.internet.run('ip addr add 10.9.9.9/32 dev lo')
  internet = new Probe(lab.internet)
  host = new Probe(lab.host)
  for (const port of [2222, 5432]) await host.listen('tcp', port)
  await internet.listen('tcp', 8000)
  await internet.listen('udp', 9)
  await boot(attachment as Attachment)
}, 180_000)

afterAll(async () => {
  await lab[Symbol.asyncDispose]()
  await rm(directory, { recursive: true })
})

test('a real Linux guest reaches what it may and is told no by everything else', { timeout: 120_000 }, async () => {
  const reach = (address: string, port: number): Promise<string> =>
    inGuest(
      `(exec 3<>/dev/tcp/${address}/${port} && echo connected) 2>&1 | grep -oE 'connected|No route to host' | head -1`,
    )
  expect(
    await inGuest("exec 3<>/dev/tcp/169.254.169.254/80; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; tail -n 1 <&3"),
  ).toBe('{"name":"demo","source_ip":"10.42.0.11"}')
  expect(await reach('198.51.100.10', 8000)).toBe('connected')
  expect(await internet.seen(8000)).toEqual(['203.0.113.2'])
  expect(await reach('10.42.0.1', 2222)).toBe('connected')
  expect(await reach('10.42.0.1', 5432)).toBe('No route to host')
  expect(await reach('203.0.113.2', 5432)).toBe('No route to host')
  expect(await reach('10.9.9.9', 8000)).toBe('No route to host')
  await inGuest(`ip route add ${neighbour.address} via 10.42.0.1`)
  expect(await reach(neighbour.address, 22)).toBe('No route to host')
})

test('a real Linux guest that takes other addresses gets nothing out with them', { timeout: 120_000 }, async () => {
  const spoofed = async (): Promise<number> =>
    Number(/packets ([0-9]+)/.exec(await lab.host.run('nft list counter inet berth refused_spoofed'))?.[1])
  await internet.seen(9)
  for (const source of [neighbour.address, '198.51.100.77']) {
    const before = await spoofed()
    await inGuest(
      `ip addr add ${source}/32 dev eth0; ip route add 198.51.100.10 via 10.42.0.1 src ${source}; echo x > /dev/udp/198.51.100.10/9; ip addr del ${source}/32 dev eth0`,
    )
    await expect.poll(spoofed).toBeGreaterThan(before)
  }
  expect(await internet.settled(9)).toEqual([])
  await inGuest('echo x > /dev/udp/198.51.100.10/9')
  expect((await internet.ask({ do: 'wait', port: 9, source: '203.0.113.2' })).arrived).toBe(true)
})
