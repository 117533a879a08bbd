/**
 * What doing by hand needs whatever is done: what lies about a QEMU, and knowing when its guest can be used. Of Berth's
 * only the names of files and QEMU's arguments are taken, nothing of it runs.
 */
import { execFileSync, spawn } from 'node:child_process'
import { mkdirSync, rmSync } from 'node:fs'
import { connect } from 'node:net'
import { join } from 'node:path'
import { type AgentChannel, connectAgent } from '../../vmhost/guest/channel.ts'
import type { MachineSpec } from '../../vmhost/hypervisor/driver.ts'
import { files } from '../../vmhost/hypervisor/qemu-command.ts'

// Neither name nor network are Berth's, whose firewall drops what is no machine's.
const TAP = 'hand'
const RETRY_MS = 20
const LIMIT_MS = 120_000

/** One guest's card, and the server's address on it. */
export type HandNetwork = {
  address: string
  mac: string
  gateway: string
  /** the tap's own; a guest that was saved goes on sending to the one that it knew */
  gatewayMac?: string
}

/** A folder with what QEMU wants to find there, and a reader of its guest's console. */
export function makeFolder(directory: string): Disposable {
  rmSync(directory, { recursive: true, force: true })
  mkdirSync(join(directory, files.run), { recursive: true })
  const ends = [`${files.consoleFifo}.in`, `${files.consoleFifo}.out`].map((name) => join(directory, name))
  execFileSync('mkfifo', ends)
  const drain = spawn('cat', [join(directory, `${files.consoleFifo}.out`)], { stdio: ['ignore', 'ignore', 'inherit'] })
  return {
    [Symbol.dispose]: () => {
      drain.kill()
      rmSync(directory, { recursive: true, force: true })
    },
  }
}

/** Makes the tap of the `number`th guest. @returns its name */
export function makeTap({ address, mac, gateway, gatewayMac }: HandNetwork, number = 0): Disposable & { name: string } {
  const name = `${TAP}${number}`
  execFileSync('ip', ['-batch', '-'], {
    input: [
      `tuntap add dev ${name} mode tap vnet_hdr`,
      `link set ${name} ${gatewayMac === undefined ? '' : `address ${gatewayMac} `}up`,
      `address replace ${gateway}/32 dev ${name}`,
      `route replace ${address}/32 dev ${name}`,
      `neighbour replace ${address} lladdr ${mac} dev ${name} nud permanent`,
    ].join('\n'),
  })
  return { name, [Symbol.dispose]: () => void execFileSync('ip', ['link', 'delete', name]) }
}

/** Starts QEMU over a folder that was made, and connects to its guest's agent. */
export function startQemu(
  spec: Pick<MachineSpec, 'directory'>,
  parameters: readonly string[],
  state?: number,
): AsyncDisposable & { agent: AgentChannel } {
  const qemu = spawn('qemu-system-x86_64', parameters, {
    cwd: spec.directory,
    stdio: ['ignore', 'ignore', 'inherit', ...(state === undefined ? [] : [state])],
  })
  const agent = connectAgent(join(spec.directory, files.agent))
  return {
    agent,
    [Symbol.asyncDispose]: async () => {
      agent.close()
      qemu.kill('SIGKILL')
      if (qemu.exitCode === null && qemu.signalCode === null) await new Promise((resolve) => qemu.once('exit', resolve))
    },
  }
}

/**
 * Tries something every 20 ms until it succeeds.
 * @param news something that makes another try worth while at once
 * @throws when it has not within two minutes
 */
export async function untilSucceeds(attempt: () => Promise<boolean>, news?: Promise<unknown>): Promise<void> {
  const startedAt = performance.now()
  let pending = news?.finally(() => {
    pending = undefined
  })
  pending?.catch(() => {})
  while (!(await attempt())) {
    const pause = new Promise((resolve) => setTimeout(resolve, RETRY_MS))
    await (pending ? Promise.race([pending, pause]) : pause)
    if (performance.now() - startedAt > LIMIT_MS) throw new Error(`not ready in ${LIMIT_MS} ms`)
  }
}

/**
 * `ssh true`, once, as soon as the port is open.
 * @param heardMs a SYN that nobody heard for so long is sent anew: a guest that boots misses some, one that goes on none
 */
export function sshTrue(address: string, key: string, heardMs: number): () => Promise<boolean> {
  const options = [
    'UserKnownHostsFile=/dev/null',
    'StrictHostKeyChecking=no',
    'IdentitiesOnly=yes',
    'BatchMode=yes',
    'LogLevel=QUIET',
    'ConnectTimeout=30',
  ].flatMap((option) => ['-o', option])
  const client = ['-F', 'none', ...options, '-i', key, `dev@${address}`, 'true']
  return async () => (await listens(address, 22, heardMs)) && (await succeeds('ssh', client))
}

/** A page of a guest, whole; `heardMs` as above. */
export function page(address: string, port: number, heardMs: number): () => Promise<boolean> {
  const client = ['-s', '-o', '/dev/null', '-m', '30', `http://${address}:${port}/`]
  return async () => (await listens(address, port, heardMs)) && (await succeeds('curl', client))
}

function listens(address: string, port: number, heardMs: number): Promise<boolean> {
  const socket = connect({ host: address, port }).setTimeout(heardMs)
  return new Promise<boolean>((resolve) => {
    socket.once('connect', () => resolve(true))
    for (const event of ['error', 'timeout']) socket.once(event, () => resolve(false))
  }).finally(() => socket.destroy())
}

/** Not spawnSync: an agent is talked to between two tries. */
function succeeds(program: string, parameters: string[]): Promise<boolean> {
  const child = spawn(program, parameters, { stdio: 'ignore' })
  return new Promise((resolve) => child.once('close', (status) => resolve(status === 0)))
}
