import { join } from 'node:path'
import { SettingsError } from '../settings.ts'
import { cloudHypervisorDriver } from './cloud-hypervisor.ts'
import { proveCloudHypervisor } from './cloud-hypervisor-probe.ts'
import { CloudHypervisorPrograms } from './cloud-hypervisor-programs.ts'
import { abilitiesOf, findCloudHypervisor, programVersion } from './cloud-hypervisor-version.ts'
import { type HypervisorDriver, HypervisorError } from './driver.ts'
import { withEarlier } from './earlier.ts'
import { type AcceleratorChoice, chooseAccelerator } from './probe.ts'
import { Processors } from './processor.ts'
import { qemuDriver } from './qemu.ts'

export type HypervisorOptions = {
  /** BERTH_HYPERVISOR */
  readonly wanted: 'auto' | 'cloud-hypervisor' | 'qemu'
  /** BERTH_ACCEL */
  readonly accelerator: 'auto' | 'kvm' | 'tcg'
  /** CLOUD_HYPERVISOR */
  readonly program: string | undefined
  readonly searchPath: string
  /** the kernel that machines boot; without one nothing can be proved */
  readonly kernel: string | undefined
  readonly qemuVersion: string
  readonly cgroups: boolean
  /** the machines' store */
  readonly store: string
  /** folder for answers that hold as long as the server, its kernel and the programs are the same */
  readonly cache: string
}

/** Which hypervisor and accelerator machines are started under, and why in a sentence for people. */
export type HypervisorChoice = AcceleratorChoice & {
  readonly driver: HypervisorDriver
  /** what is not as it should be with it, and what would mend it */
  readonly concerns: readonly { readonly message: string; readonly remedy: string }[]
}

/**
 * Cloud Hypervisor where it is there and KVM works, for it starts and restores in less time and memory, else QEMU.
 * @throws SettingsError when what the operator asks for cannot be had
 */
export async function chooseHypervisor(options: HypervisorOptions): Promise<HypervisorChoice> {
  const { wanted, accelerator } = options
  if (wanted === 'qemu') return withQemu(options, 'BERTH_HYPERVISOR=qemu asks for it')
  if (accelerator === 'tcg') {
    if (wanted === 'auto') return withQemu(options)
    throw new SettingsError('BERTH_ACCEL is "tcg": expected auto or kvm with BERTH_HYPERVISOR=cloud-hypervisor')
  }
  const found = await tryCloudHypervisor(options)
  if ('driver' in found) return found
  if (wanted === 'cloud-hypervisor') {
    throw new SettingsError(`BERTH_HYPERVISOR is "cloud-hypervisor": expected auto or qemu, because ${found.problem}`)
  }
  // It is not there, which is nothing to speak of.
  if (!found.isThere) return withQemu(options)
  // Another try would take as long to fail in the same way.
  if (found.isKvm && accelerator === 'auto') {
    const reason = `${found.problem}, so machines are emulated and many times slower`
    return { ...(await withQemu({ ...options, accelerator: 'tcg' })), reason }
  }
  return withQemu(options, `Cloud Hypervisor was not chosen: ${found.problem}`)
}

async function withQemu(options: HypervisorOptions, why?: string): Promise<HypervisorChoice> {
  const { qemuVersion, cgroups, kernel } = options
  const cachePath = join(options.cache, 'kvm.json')
  const choice = await chooseAccelerator({ wanted: options.accelerator, kernel, qemuVersion, cachePath })
  const { accelerator } = choice
  const processors = await keepProcessors(options)
  const qemu = qemuDriver({ accelerator, version: qemuVersion, cgroups, processors })
  const driver = await withCloudHypervisorToo(qemu, options, { isKvmUsed: accelerator === 'kvm', processors })
  return { ...choice, reason: why === undefined ? choice.reason : `${choice.reason}; ${why}`, driver, concerns: [] }
}

/** For machines that it has started before the operator decided otherwise. */
async function withCloudHypervisorToo(
  qemu: HypervisorDriver,
  options: HypervisorOptions,
  found: { isKvmUsed: boolean; processors: Processors },
): Promise<HypervisorDriver> {
  const programs = programsOf(options)
  const known = await programs.newest()
  if (known === undefined) return qemu
  const { binary, version } = known
  return withEarlier(
    qemu,
    cloudHypervisorDriver({ binary, version, programs, landlock: false, cgroups: options.cgroups, ...found }),
  )
}

type NotChosen = { readonly problem: string; readonly isThere: boolean; readonly isKvm: boolean }

async function tryCloudHypervisor(options: HypervisorOptions): Promise<HypervisorChoice | NotChosen> {
  const programs = programsOf(options)
  const { kernel, cgroups, qemuVersion } = options
  try {
    const program = await findCloudHypervisor(options.program, options.searchPath)
    if (program === undefined) {
      const problem = 'there is no program cloud-hypervisor in PATH, and CLOUD_HYPERVISOR names none'
      return { problem, isThere: false, isKvm: false }
    }
    const said = await programVersion(program)
    abilitiesOf(said)
    const binary = await programs.keep(program, said)
    const proof = await proveCloudHypervisor({
      binary,
      kernel,
      directory: join(options.store, 'probe', '1'),
      cachePath: join(options.cache, 'cloud-hypervisor.json'),
    })
    if (proof.problem !== undefined) {
      if (!proof.isKvm || options.accelerator !== 'kvm' || options.wanted !== 'cloud-hypervisor') {
        return { problem: proof.problem, isThere: true, isKvm: proof.isKvm }
      }
    }
    const proved = proof.problem === undefined
    const version = proved ? proof.version : said
    const landlock = proved && proof.landlock
    const processors = await keepProcessors(options)
    const driver = cloudHypervisorDriver({ binary, version, landlock, programs, cgroups, processors })
    const reason = proved
      ? 'a guest was started under KVM'
      : `BERTH_HYPERVISOR and BERTH_ACCEL ask for it, though ${proof.problem}`
    const qemu = qemuDriver({ accelerator: 'kvm', version: qemuVersion, cgroups, processors })
    const concerns = concernsAbout(version, landlock)
    return { accelerator: 'kvm', proved, reason, driver: withEarlier(driver, qemu), concerns }
  } catch (error) {
    if (!(error instanceof HypervisorError)) throw error
    return { problem: error.message, isThere: true, isKvm: false }
  }
}

async function keepProcessors({ store }: HypervisorOptions): Promise<Processors> {
  const processors = new Processors(join(store, 'processors'))
  // On a full disk it is left to the next start: whatever runs goes before it.
  await processors.keep().catch(() => {})
  return processors
}

function programsOf({ store }: HypervisorOptions): CloudHypervisorPrograms {
  return new CloudHypervisorPrograms(join(store, 'hypervisors'))
}

function concernsAbout(version: string, landlock: boolean): HypervisorChoice['concerns'] {
  const { objection, savesSparsely } = abilitiesOf(version)
  return [
    ...(objection === undefined
      ? []
      : [
          {
            message: `Cloud Hypervisor ${version} is not safe: ${objection}`,
            remedy: 'Install a newer Cloud Hypervisor',
          },
        ]),
    ...(savesSparsely
      ? []
      : [
          {
            message: `Under Cloud Hypervisor ${version} a machine that wakes takes all of its memory, used or not, and none has more CPUs before its next start`,
            remedy: 'Install Cloud Hypervisor v52 or newer',
          },
        ]),
    ...(landlock
      ? []
      : [
          {
            message: 'Hypervisors are confined by their users and seccomp alone: the kernel has no Landlock for them',
            remedy: 'Boot Linux 6.2 or newer with landlock among its security modules (lsm=landlock,...)',
          },
        ]),
  ]
}
