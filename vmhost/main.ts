import { mkdirSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { availableParallelism, totalmem } from 'node:os'
import { join } from 'node:path'
import pino, { type Logger } from 'pino'
import { connect } from '../migrations/connect.ts'
import { examine } from './doctor.ts'
import { prepareCgroups } from './hypervisor/cgroup.ts'
import { chooseHypervisor } from './hypervisor/choose.ts'
import { hypervisorOverheadBytes } from './hypervisor/driver.ts'
import { openDevices } from './hypervisor/privileges.ts'
import { bootId, nestedAvailable } from './hypervisor/probe.ts'
import { qemuVersion } from './hypervisor/qemu.ts'
import { type Images, openImages } from './images/images.ts'
import { systemClocks } from './meter/clock.ts'
import { lastSign } from './meter/last-sign.ts'
import { LedgerRows } from './meter/ledger-rows.ts'
import { Meter } from './meter/meter.ts'
import { readKernel } from './network/kernel.ts'
import { createNetwork } from './network/network.ts'
import { describeResolvers } from './network/resolvers.ts'
import { NetworkTakenError } from './network/types.ts'
import { CheckpointRows } from './reconcile/checkpoint-rows.ts'
import { FactsWriter } from './reconcile/facts.ts'
import { imagesInUse } from './reconcile/image.ts'
import { takeLease } from './reconcile/lease.ts'
import { lockFile } from './reconcile/lock.ts'
import { Outbox } from './reconcile/observed.ts'
import { readOpenPorts } from './reconcile/public-ports.ts'
import { createReconciler } from './reconcile/reconcile.ts'
import { Rows } from './reconcile/rows.ts'
import { Slots } from './reconcile/slots.ts'
import { parseSettings, type Settings, SettingsError } from './settings.ts'
import { isServerGoingDown } from './shutdown.ts'
import { openCheckpoints } from './storage/checkpoints.ts'
import { openStore, type Store } from './storage/store.ts'
import { openTemplates } from './storage/templates.ts'
import { growVolume, prepareVolume, unmountVolume } from './storage/volume.ts'

/**
 * The vmhost process: one server's machines. It may be restarted, upgraded or killed at any time; the machines run
 * on and are adopted again.
 */

/** Told to the launcher when machines can be made. */
export type ReadyMessage = {
  readonly ready: true
  readonly hypervisor: string
  readonly accelerator: string
  readonly reason: string
  readonly proved: boolean
  readonly store: string
  readonly storeKind: 'native' | 'xfs'
  readonly machines: number
  /** of these, those with a hypervisor: adopted ones */
  readonly running: number
  /** sentences about what is not as it should be, for the one who starts Berth */
  readonly notices: readonly string[]
}

const factsEveryMs = 30_000
const sweepEveryMs = 3_600_000
const growEveryMs = 600_000
const outboxLimitMs = 3_000
const ledgerLimitMs = 3_000
const sleepsAtOnce = 2
const mostUnloggedBytes = 2 ** 20
/** What the launcher and systemd leave a vmhost to put its machines to sleep is more. */
const sleepThroughShutdownMs = 150_000

async function main(): Promise<void> {
  const settings = parseSettings(process.env)
  const log = logger(settings)
  if (process.getuid?.() !== 0)
    throw new SettingsError('The vmhost must run as root: it makes network devices and mounts')
  mkdirSync(settings.dataDirectory, { recursive: true, mode: 0o755 })
  const lock = await lockFile(join(settings.dataDirectory, 'vmhost.lock'))
  if (!lock) throw new SettingsError(`Another vmhost is at work in ${settings.dataDirectory}`)

  const stop = stopSignal(log)
  const sql = connect({ url: settings.databaseUrl, role: 'berth_vmhost', max: 8, applicationName: 'berth vmhost' })
  const publicPorts = await readOpenPorts(sql, settings.publicPorts)
  const metering = Promise.withResolvers<Meter>()
  const network = createNetwork(
    { ...settings, publicPorts },
    { log, keepTransfer: async (last) => (await metering.promise).keepTransfer(last) },
  )
  openDevices()
  // The steps that need not wait for each other; the start of the whole takes as long as the slowest.
  const [lease, volume, version, cgroupProblem] = await Promise.all([
    takeLease(sql, settings.dataDirectory, stop.signal),
    prepareVolume({ dataDirectory: settings.dataDirectory, log }),
    qemuVersion(),
    prepareCgroups(),
    network.prepareHost(),
  ])
  const store = await openStore(volume, join(settings.dataDirectory, 'artifacts'))
  const images = await openImages({
    directory: volume.path,
    registriesPath: join(settings.dataDirectory, 'registries.json'),
    space: () => store.space(),
    log,
  })
  const bootSet = await store.currentBoot().catch((error: unknown) => {
    log.error({ err: error }, 'no machine can be started')
    return undefined
  })
  const hypervisor = await chooseHypervisor({
    wanted: settings.hypervisor,
    accelerator: settings.accelerator,
    program: settings.cloudHypervisor,
    searchPath: process.env.PATH ?? '/usr/local/bin:/usr/bin',
    kernel: bootSet?.kernel,
    qemuVersion: version,
    cgroups: cgroupProblem === undefined,
    store: volume.path,
    cache: join(settings.dataDirectory, 'vmhost'),
  })
  const { driver, accelerator, reason, proved, concerns } = hypervisor
  const notices = [
    ...(cgroupProblem ? [`hypervisors have no limits of their own: ${cgroupProblem}`] : []),
    ...concerns.map(({ message }) => message),
    ...describeResolvers(settings, await readKernel()),
  ]
  for (const notice of notices) log.warn(notice)
  const accelerated = accelerator === 'kvm'
  if (accelerated) log.info({ hypervisor: driver.name, reason }, 'machines run under KVM')
  else log.warn({ reason }, 'machines are emulated')

  const rows = new Rows(sql, lease)
  const outbox = new Outbox(rows, log, () => stop.abort('lease lost'))
  const meter = await Meter.open({
    path: join(settings.dataDirectory, 'vmhost', 'ledger.json'),
    rows: new LedgerRows(sql, lease),
    clocks: systemClocks(bootId()),
    readTransfer: () => network.readTransfer(),
    everyMs: settings.meterEveryMs,
    lastWrite: (id) => lastSign(store.directoryOf(id)),
    log,
    onLeaseLost: () => stop.abort('lease lost'),
  })
  metering.resolve(meter)
  const cpus = availableParallelism()
  const memoryForMachines = totalmem() - reservedBytes(totalmem())
  const reconciler = createReconciler({
    world: {
      driver,
      store,
      checkpoints: await openCheckpoints(volume),
      images,
      network,
      rows,
      checkpointRows: new CheckpointRows(sql, lease),
      outbox,
      meter,
      slots: new Slots(startsAtOnce(accelerated, cpus)),
      wakes: new Slots(accelerated ? Math.max(8, cpus * 4) : Math.max(2, cpus)),
      sleeps: new Slots(sleepsAtOnce),
      guest: settings,
      memoryBytes: memoryForMachines - hypervisorOverheadBytes,
      log,
    },
    templates: await openTemplates(volume),
    publicPorts: settings.publicPorts,
    log,
    onLeaseLost: () => stop.abort('lease lost'),
    onUnknownDisk: () => writeFactsLater(),
  })
  const facts = new FactsWriter(rows)
  const productVersion = await readVersion()
  const writeFacts = async () => {
    const [images, space, unknownDisks, memory, ledger] = await Promise.all([
      store.images(),
      store.space(),
      reconciler.unknownDisks(),
      reconciler.memory(),
      meter.troubles(),
    ])
    await facts.write({
      boot_id: bootId(),
      cpus,
      memory_bytes: memoryForMachines,
      machine_overhead_bytes: hypervisorOverheadBytes,
      memory_available_bytes: memory.host.availableBytes,
      memory_used_bytes: memory.usedBytes,
      memory_reclaimed_bytes: memory.reclaimedBytes,
      store_bytes: space.totalBytes,
      store_free_bytes: Math.max(0, space.freeBytes - space.reserveBytes),
      hypervisor: `${driver.name} ${driver.version}`,
      accelerator,
      accelerator_reason: reason,
      nested: accelerated && nestedAvailable(),
      images: images.map(({ init: _, ...image }) => image),
      doctor: await examine({ store, hypervisor, memory, unknownDisks, ledger, cgroupProblem, settings }),
      version: productVersion,
    })
  }
  const writeFactsLater = () => void writeFacts().catch((error) => log.warn({ err: error }, 'facts wait'))
  await writeFacts()
  // Before anybody asks for one: what was half made when the vmhost before was ended.
  await sweepImages(images, store, log)
  await reconciler.start()
  // Once more: what lies in the store without an owner is known only now.
  await writeFacts()
  await network.startMetadata(async (address) => reconciler.nameAt(address))
  const timers = [
    setInterval(writeFactsLater, factsEveryMs),
    setInterval(() => void sweepImages(images, store, log), sweepEveryMs),
    setInterval(() => growVolume(volume, { log }).catch((error) => log.warn({ err: error }, 'volume')), growEveryMs),
  ]
  // The first machine of an image need not wait for its copy.
  const importing = importImages(store, log, stop.signal)

  const ready: ReadyMessage = {
    ready: true,
    hypervisor: `${driver.name} ${driver.version}`,
    accelerator,
    reason,
    proved,
    store: volume.path,
    storeKind: volume.kind,
    ...reconciler.counts(),
    notices,
  }
  // Without a launcher, or after it was killed, there is nobody to tell.
  process.send?.(ready, undefined, {}, () => {})
  log.info(ready, 'ready')

  const why = await stop.stopped
  if (await isServerGoingDown(why)) {
    log.info({ why }, 'the server goes down: machines are put to sleep, and wake when it is back')
    await reconciler.sleepThroughShutdown(sleepThroughShutdownMs)
  }
  log.info({ why }, 'ending; machines run on')
  for (const timer of timers) clearInterval(timer)
  await reconciler.close()
  await meter.close(ledgerLimitMs)
  await outbox.close(outboxLimitMs)
  await network.close()
  await importing
  await sql.end({ timeout: 2 })
  // For backups: what stays mounted is in the volume's file and beside it, and some of it in neither yet.
  if (reconciler.counts().running === 0)
    await unmountVolume(volume).catch((error) => log.warn({ err: error }, 'the store stays mounted'))
  lock[Symbol.dispose]()
  process.exitCode = why === 'lease lost' ? 1 : 0
  if (process.connected) process.disconnect()
}

/**
 * A boot under emulation keeps more than one core busy; more of them side by side only make each slower, until their
 * limits run out.
 */
function startsAtOnce(accelerated: boolean, cpus: number): number {
  return accelerated ? Math.max(4, cpus * 2) : Math.max(2, cpus)
}

/** Memory that is promised to no machine: Postgres's, the gateway's, this process's and the system's. */
function reservedBytes(totalBytes: number): number {
  return Math.min(2 ** 30, Math.floor(totalBytes / 4))
}

/** Those of which no machine was made here are removed some time after they were last asked for. */
async function sweepImages(images: Images, store: Store, log: Logger): Promise<void> {
  try {
    await images.sweep(await imagesInUse(store))
  } catch (error) {
    log.warn({ err: error }, 'images')
  }
}

async function importImages(store: Store, log: Logger, signal: AbortSignal): Promise<void> {
  for (const image of await store.images()) {
    if (signal.aborted) return
    await store
      .importImage(image)
      .catch((error) => log.warn({ err: error, image: image.name }, 'image not imported yet'))
  }
}

/** SIGTERM, SIGINT and SIGPWR end this process in order; the end of the launcher does not. */
function stopSignal(log: Logger) {
  const controller = new AbortController()
  const stopped = new Promise<string>((resolve) => {
    controller.signal.addEventListener('abort', () => resolve(String(controller.signal.reason)), { once: true })
  })
  for (const name of ['SIGTERM', 'SIGINT', 'SIGPWR'] as const) process.on(name, () => controller.abort(name))
  process.on('disconnect', () => {
    // In an orderly end it is this process that lets go.
    if (!controller.signal.aborted) log.info('the launcher is gone; going on without it')
  })
  return { signal: controller.signal, stopped, abort: (why: string) => controller.abort(why) }
}

function logger(settings: Settings): Logger {
  const options = { level: settings.logLevel, base: { side: 'vmhost' } }
  if (!process.stderr.isTTY) {
    const destination = pino.destination({ dest: 2, sync: true, maxLength: mostUnloggedBytes })
    // A file on a disk that is full. Lines are lost, and machines are looked after all the same.
    destination.on('error', () => {})
    return pino(options, destination)
  }
  return pino({ ...options, transport: { target: 'pino-pretty', options: { destination: 2 } } })
}

async function readVersion(): Promise<string> {
  const text = await readFile(new URL('../package.json', import.meta.url), 'utf8')
  return String((JSON.parse(text) as { version?: unknown }).version ?? '')
}

main().catch((error: unknown) => {
  const badSetting = error instanceof SettingsError || error instanceof NetworkTakenError
  if (badSetting) process.stderr.write(`${error.message}\n`)
  else process.stderr.write(`The vmhost cannot start: ${chain(error)}\n`)
  // 2 tells the launcher that another start would not help.
  process.exit(badSetting ? 2 : 1)
})

/** The message for a person, then what it came from, each link once. */
function chain(error: unknown): string {
  const links: string[] = []
  for (let link = error; link instanceof Error && links.length < 8; link = link.cause) links.push(link.message)
  return links.length > 0 ? links.join(': ') : String(error)
}
