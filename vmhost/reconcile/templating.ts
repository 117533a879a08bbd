import { setTimeout as sleep } from 'node:timers/promises'
import type { Logger } from 'pino'
import { connectAgent } from '../guest/channel.ts'
import { type BootStage, bootStages } from '../guest/messages.ts'
import { type Hypervisor, type HypervisorDriver, HypervisorError, hypervisorUid } from '../hypervisor/driver.ts'
import { macFor } from '../network/address.ts'
import type { Network } from '../network/types.ts'
import type { BootSet } from '../storage/store.ts'
import type { Template, TemplateFiles, TemplateImage, TemplateKey } from '../storage/templates.ts'
import { commandLine, type GuestNetwork } from './specification.ts'
import { mostFor } from './starting.ts'
import type { World } from './world.ts'

/**
 * How a template is made: a guest of nobody's boots, and is saved at the moment when it asks who it is.
 *
 *     nothing --disk of the image's, a tap that leads nowhere--> booting --its agent waits to be identified--> waiting
 *     waiting --its kernel has given its free pages back--> paused --memory written--> saved
 *     saved --its hypervisor is gone--> whole --its name--> template (storage/templates.ts)
 *     any --a step fails, the server is wanted for something else, this vmhost ends--> nothing
 *
 * It waits with its root and its tools mounted, before the platform's sshd and before the image's init: no program of
 * the image has run, nothing of it has an identity, keys, randomness or a secret of its own, and no boot id was drawn
 * (init/agent.c). So what differs from machine to machine, name, address, host key, machine id, login user, environment,
 * the service of a container image, the command line, comes with the identity that every booting machine is given, and
 * is there before anything could have seen another. Of the kernel its machines share what was drawn at its start: where
 * it lies in memory (KASLR), and its hash seeds.
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
  /** Somebody waits for a machine that comes up: it has the processors first. */
  isAwaited(): boolean
  readonly log: Pick<Logger, 'info' | 'warn' | 'debug'>
  /** tests: shorter */
  readonly limits?: Partial<typeof limits>
}

const limits = {
  bootMs: { kvm: 60_000, tcg: 240_000 },
  /** A kernel reports its free pages 2 s after it has freed them (PAGE_REPORTING_DELAY, mm/page_reporting.c). */
  settleMs: 3_000,
}
const lookEveryMs = 500

/** The command line that every template of this server boots with, and its machines go on with. */
export function templateCommandLine(guest: GuestNetwork, emulated: boolean): string {
  const machine = { name: 'template', address: templateAddress }
  return commandLine(machine, { ...guest, network: templateNetwork }, emulated)
}

/**
 * @param signal gives it up
 * @throws whatever kept it from being made; nothing of it is left then
 */
export async function makeTemplate(
  key: TemplateKey,
  image: TemplateImage,
  bootSet: BootSet,
  world: TemplateWorld,
  signal: AbortSignal,
): Promise<Template> {
  const { driver, files, network, log } = world
  const { bootMs, settleMs } = { ...limits, ...world.limits }
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
    await Promise.race([waiting.waits, aborted(signal)])
    await sleep(settleMs, undefined, { signal })
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

/**
 * Waits for a guest to ask who it is, and has it yield to whoever is waited for meanwhile; `waits` fails when it comes to
 * its end, or does not get there within the limit.
 */
function watch(hypervisor: Hypervisor, limitMs: number, isAwaited: () => boolean) {
  const { socketPath, vsockPort } = hypervisor.agent
  // It stays connected until the guest is saved: one that finds nobody at the other end looks seldom.
  const channel = connectAgent(socketPath, vsockPort === undefined ? {} : { vsockPort })
  const { promise, resolve, reject } = Promise.withResolvers<void>()
  promise.catch(() => {})
  const fail = (why: string) => reject(new HypervisorError('hypervisor.start', `The guest of a template ${why}`))
  let yields = false
  const looks = setInterval(() => {
    if (isAwaited() === yields) return
    yields = !yields
    hypervisor.yieldToOthers(yields).catch(() => {})
  }, lookEveryMs).unref()
  const timer = setTimeout(() => fail(`did not get on within ${limitMs / 1000} s`), limitMs)
  const look = (stage: BootStage) => {
    timer.refresh()
    if (bootStages.indexOf(stage) >= bootStages.indexOf('tools')) resolve()
  }
  const unsubscribe = hypervisor.on((event) => {
    if (event.type === 'shutdown' || event.type === 'panicked' || event.type === 'exited') fail('came to its end')
  })
  channel.on((event) => {
    if (event.type === 'hello') look(event.hello.stage)
    else if (event.type === 'stage') look(event.stage)
    else if (event.type === 'fatal') fail(`could not go on: ${event.reason}`)
  })
  return {
    waits: promise.finally(() => clearTimeout(timer)),
    close() {
      clearInterval(looks)
      clearTimeout(timer)
      unsubscribe()
      channel.close()
    },
  }
}

function aborted(signal: AbortSignal): Promise<never> {
  return new Promise((_, reject) => {
    if (signal.aborted) reject(signal.reason)
    else signal.addEventListener('abort', () => reject(signal.reason), { once: true })
  })
}

/** What a machine and its template have in common. */
export function templateKey(
  { imageHash, cpus, memoryBytes }: { imageHash: string; cpus: number; memoryBytes: number },
  bootSet: Pick<BootSet, 'hash'>,
  world: Pick<World, 'guest' | 'memoryBytes'> & Pick<TemplateWorld, 'driver'>,
): TemplateKey {
  const { driver, guest } = world
  return {
    imageHash,
    bootSet: bootSet.hash,
    stateVersion: driver.stateVersion,
    cpus,
    memoryBytes,
    most: mostFor({ cpus, memoryBytes }, world),
    commandLine: templateCommandLine(guest, driver.accelerator === 'tcg'),
  }
}
