import { randomBytes } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { stripVTControlCharacters } from 'node:util'
import type { Logger } from 'pino'
import { type AgentChannel, connectAgent } from '../guest/channel.ts'
import { type BootStage, bootStages, type MachineIdentity } from '../guest/messages.ts'
import {
  type Hypervisor,
  type HypervisorDriver,
  HypervisorError,
  hypervisorUid,
  type MachineSize,
} from '../hypervisor/driver.ts'
import { readFifo } from '../hypervisor/fifo.ts'
import { macFor } from '../network/address.ts'
import type { Network } from '../network/types.ts'
import type { BootSet, DiskImage } from '../storage/store.ts'
import type { Template, TemplateFiles, TemplateImage, TemplateKey } from '../storage/templates.ts'
import { makeHostKey } from './identity.ts'
import { commandLine, type GuestNetwork, isOwnImage } from './specification.ts'
import { mostFor } from './starting.ts'
import type { World } from './world.ts'

/**
 * How a template is made: a guest of nobody's boots, and is saved as far on its way as it is good for every machine.
 *
 *     nothing --disk of the image's, a tap that leads nowhere--> booting --its agent waits to be identified--> waiting
 *     waiting --an image of set-up's: it is told that it is nobody--> starting --it has nothing left to do--> at rest
 *     waiting, at rest --its kernel has given its free pages back--> paused --memory written--> saved
 *     saved --its hypervisor is gone--> whole --its name--> template (storage/templates.ts)
 *     any --a step fails, the server is wanted for something else, this vmhost ends--> nothing
 *
 * An image of a registry waits with its root and its tools mounted, before the platform's sshd and before the image's
 * init: no program of it has run, nothing of it has an identity, keys, randomness or a secret of its own, and no boot id
 * was drawn (init/agent.c). What its programs make when they start first, keys, tokens, passwords, nobody here knows,
 * and machines of different accounts would share it. So what differs from machine to machine, name, address, host key,
 * machine id, login user, environment, the service of a container image, the command line, comes with the identity that
 * every booting machine is given, and is there before anything could have seen another. Of the kernel its machines share
 * what was drawn at its start: where it lies in memory (KASLR), and its hash seeds.
 *
 * What an image of set-up's starts is known (install/rootfs/): systemd and what belongs to it, no program that makes a
 * secret of its own, and Docker only with its first command. It is saved when all of that has started, which is most of
 * the work of a boot. Its machines become somebody as a copy of one that runs does, sshd, which starts anew, before
 * anybody can reach it, and are given a boot id and a journal of their own. They share, besides, where these programs
 * lie in memory (ASLR), and the seed on the disk, which counts for nothing: each boot is given randomness. One in which
 * something did not start, on a server that was too busy for it, is given up: all of its machines would be without that.
 *
 * Killed at any step, the vmhost leaves a hypervisor, a tap and a directory that no row knows; the next one ends and
 * removes them when it starts (`removeHalfMade`).
 */

/** Above all ids of machines: its user and its tap are nobody's. */
export const templateMachineId = 2_000_000_000
/** Documentation's (RFC 5737): no machine has it, so that every one of a template is told its own. */
const templateNetwork = '192.0.2.0/24'
const templateAddress = '192.0.2.2'

export type TemplateWorld = {
  readonly driver: Pick<HypervisorDriver, 'accelerator' | 'start' | 'destroy' | 'stateVersion'>
  readonly files: TemplateFiles
  readonly network: Pick<Network, 'ensureBareTap' | 'removeMachine'>
  /** Somebody waits for a machine that comes up, or works in one: they have the processors first. */
  isAwaited(): boolean
  readonly log: Pick<Logger, 'info' | 'warn' | 'debug'>
  /** tests: shorter */
  readonly limits?: Partial<typeof limits>
}

const limits = {
  /** for each stage; others may come first */
  bootMs: { kvm: 60_000, tcg: 600_000 },
  /** A kernel reports its free pages 2 s after it has freed them (PAGE_REPORTING_DELAY, mm/page_reporting.c). */
  settleMs: 3_000,
  /** A guest that has worked so little, for so long, has nothing left to start. */
  calmShare: 0.1,
  calmMs: 3_000,
  calmLookMs: 1_000,
  /** until it is calm, while nobody else wants the processors */
  calmLimitMs: { kvm: 60_000, tcg: 300_000 },
  freezeMs: 30_000,
}
const lookEveryMs = 500
/** Its agent, beside others that are coming up. */
const answerLimitMs = 60_000

/** The command line that every template of this server boots with, and its machines go on with. */
function templateCommandLine(guest: GuestNetwork, emulated: boolean): string {
  const machine = { name: 'template', address: templateAddress }
  return commandLine(machine, { ...guest, network: templateNetwork }, emulated)
}

/**
 * @param signal gives it up
 * @throws whatever kept it from being made; nothing of it is left then
 */
export async function makeTemplate(
  key: TemplateKey,
  image: TemplateImage & { readonly loginUser: string },
  bootSet: BootSet,
  world: TemplateWorld,
  signal: AbortSignal,
): Promise<Template> {
  const { driver, files, network, log } = world
  const { bootMs, settleMs, freezeMs } = { ...limits, ...world.limits }
  const startedAt = performance.now()
  const uid = hypervisorUid(templateMachineId)
  const draft = await files.begin(image, uid)
  let hypervisor: Hypervisor | undefined
  let waiting: ReturnType<typeof watch> | undefined
  try {
    const { tap } = await network.ensureBareTap(templateMachineId, uid)
    signal.throwIfAborted()
    hypervisor = await driver.start({
      machineId: templateMachineId,
      directory: draft.directory,
      cpus: key.cpus,
      memoryBytes: key.memoryBytes,
      most: key.most,
      kernel: bootSet.kernel,
      initrd: bootSet.initrd,
      commandLine: key.commandLine,
      disk: draft.disk,
      tools: bootSet.tools,
      network: { tap, mac: macFor(templateAddress) },
    })
    waiting = watch(hypervisor, bootMs[driver.accelerator], world.isAwaited)
    const { failed } = waiting
    await Promise.race([waiting.reaches('tools'), aborted(signal)])
    if (key.isStarted) {
      const { channel } = waiting
      await channel.identify(nobody(image.loginUser), { timeoutMs: answerLimitMs, signal })
      await Promise.race([waiting.reaches('init'), aborted(signal)])
      await Promise.race([untilCalm(channel, world, signal), failed])
      // Should a machine have to boot from its disk after all, that is as if it had been switched off.
      await channel.freeze(freezeMs, { timeoutMs: freezeMs, signal })
      await channel.thaw({ timeoutMs: answerLimitMs, signal })
    }
    await Promise.race([sleep(settleMs, undefined, { signal }), failed])
    await hypervisor.pause()
    signal.throwIfAborted()
    await hypervisor.save(await draft.beginMemory())
    signal.throwIfAborted()
    waiting.close()
    await hypervisor.quit()
    hypervisor = undefined
    const template = await draft.keep(key, image.name)
    log.info(
      { template: template.id, image: image.name, ms: Math.round(performance.now() - startedAt) },
      'made a template',
    )
    return template
  } finally {
    waiting?.close()
    await hypervisor?.kill().catch((error: unknown) => log.warn({ err: error }, 'a template’s hypervisor'))
    await network
      .removeMachine(templateMachineId)
      .catch((error: unknown) => log.warn({ err: error }, 'a template’s tap'))
    await draft.drop()
  }
}

/** Takes away what a vmhost that was killed has left of one. */
export async function removeHalfMade({ driver, files, log }: Pick<TemplateWorld, 'driver' | 'files' | 'log'>) {
  const ended = await driver.destroy(templateMachineId, files.workDirectory)
  if (ended > 0) log.info('ended the hypervisor of a template that was not finished')
  await files.sweep()
}

/** Whom a template takes itself for; all of it is another's before anybody can reach that. */
function nobody(loginUser: string): MachineIdentity {
  return {
    hostname: 'template',
    loginUser,
    authorizedKeys: [],
    environment: {},
    hostKey: makeHostKey('template').privateKey,
    machineId: randomBytes(16).toString('hex'),
  }
}

/** Resolves when a guest does nothing any more. @throws when it never does */
async function untilCalm(
  channel: Pick<AgentChannel, 'report'>,
  world: Pick<TemplateWorld, 'driver' | 'isAwaited' | 'limits'>,
  signal: AbortSignal,
): Promise<void> {
  const { calmShare, calmMs, calmLookMs, calmLimitMs } = { ...limits, ...world.limits }
  const limitMs = calmLimitMs[world.driver.accelerator]
  const busyMs = async () => (await channel.report({ timeoutMs: answerLimitMs, signal })).cpuBusyMs
  let [at, busy, calmFor, left] = [performance.now(), await busyMs(), 0, limitMs]
  while (calmFor < calmMs) {
    await sleep(calmLookMs, undefined, { signal })
    const [now, nowBusy] = [performance.now(), await busyMs()]
    const passedMs = now - at
    calmFor = nowBusy - busy <= passedMs * calmShare ? calmFor + passedMs : 0
    // What has to wait for others is not to blame.
    if (!world.isAwaited()) left -= passedMs
    if (left < 0)
      throw new HypervisorError('hypervisor.start', `The guest of a template is busy for ${limitMs / 1000} s`)
    at = now
    busy = nowBusy
  }
}

/**
 * Waits for a guest to pass stages of its boot, and has it yield to whoever is waited for meanwhile; that fails when it
 * comes to its end, or does not get there within the limit.
 */
function watch(hypervisor: Hypervisor, limitMs: number, isAwaited: () => boolean) {
  const { socketPath, ...at } = hypervisor.agent
  // It stays connected until the guest is saved: one that finds nobody at the other end looks seldom.
  const channel = connectAgent(socketPath, at)
  const { promise: failed, reject } = Promise.withResolvers<never>()
  failed.catch(() => {})
  const fail = (why: string) => reject(new HypervisorError('hypervisor.start', `The guest of a template ${why}`))
  let furthest = -1
  const awaited: { at: number; resolve(): void }[] = []
  let yields = false
  const looks = setInterval(() => {
    if (isAwaited() === yields) return
    yields = !yields
    hypervisor.yieldToOthers(yields).catch(() => {})
  }, lookEveryMs).unref()
  let timer: NodeJS.Timeout | undefined
  const expectProgress = () => {
    clearTimeout(timer)
    timer = setTimeout(() => fail(`did not get on within ${limitMs / 1000} s`), limitMs)
  }
  const look = (stage: BootStage) => {
    if (timer) expectProgress()
    furthest = Math.max(furthest, bootStages.indexOf(stage))
    for (const { at, resolve } of awaited) if (furthest >= at) resolve()
  }
  const closeConsole = readConsole(hypervisor.consolePath, (what) =>
    fail(`could not start all that it starts: ${what}`),
  )
  const unsubscribe = hypervisor.on((event) => {
    if (event.type === 'shutdown' || event.type === 'panicked' || event.type === 'exited') fail('came to its end')
  })
  channel.on((event) => {
    if (event.type === 'hello') look(event.hello.stage)
    else if (event.type === 'stage') look(event.stage)
    else if (event.type === 'fatal') fail(`could not go on: ${event.reason}`)
  })
  return {
    channel,
    failed,
    async reaches(stage: BootStage): Promise<void> {
      const { promise, resolve } = Promise.withResolvers<void>()
      awaited.push({ at: bootStages.indexOf(stage), resolve })
      if (furthest >= bootStages.indexOf(stage)) resolve()
      expectProgress()
      await Promise.race([promise, failed])
      clearTimeout(timer)
      timer = undefined
    },
    close() {
      clearInterval(looks)
      clearTimeout(timer)
      unsubscribe()
      closeConsole()
      channel.close()
    },
  }
}

/** Hears systemd say on a console that something did not start. @returns what ends it */
function readConsole(path: string, onFailed: (what: string) => void): () => void {
  let line = ''
  return readFifo(path, (chunk) => {
    const lines = (line + chunk.toString('latin1')).split('\n')
    line = lines.pop()?.slice(-lineMostChars) ?? ''
    for (const one of lines) {
      const what = failedLine.exec(stripVTControlCharacters(one))?.[1]
      if (what !== undefined) onFailed(what.trim())
    }
  })
}

/** A job's outcome as systemd writes it. */
const failedLine = /\[ *(?:FAILED|TIME|DEPEND) *\] ([ -~]{1,200})/
const lineMostChars = 4096

function aborted(signal: AbortSignal): Promise<never> {
  return new Promise((_, reject) => {
    if (signal.aborted) reject(signal.reason)
    else signal.addEventListener('abort', () => reject(signal.reason), { once: true })
  })
}

/** What a machine and its template have in common. */
export function templateKey(
  { image, cpus, memoryBytes }: { image: Pick<DiskImage, 'name' | 'hash' | 'init'> } & MachineSize,
  bootSet: Pick<BootSet, 'hash'>,
  world: Pick<World, 'guest' | 'memoryBytes'> & Pick<TemplateWorld, 'driver'>,
): TemplateKey {
  const { driver, guest } = world
  return {
    imageHash: image.hash,
    bootSet: bootSet.hash,
    stateVersion: driver.stateVersion,
    cpus,
    memoryBytes,
    most: mostFor({ cpus, memoryBytes }, world),
    commandLine: templateCommandLine(guest, driver.accelerator === 'tcg'),
    isStarted: image.init && isOwnImage(image.name),
  }
}
