import { chmod, chown, mkdir, open, readFile, rename, rm, stat, writeFile } from 'node:fs/promises'
import { release } from 'node:os'
import { dirname, join } from 'node:path'
import { z } from 'zod'
import { cloudHypervisorDriver } from './cloud-hypervisor.ts'
import { abilitiesOf, programVersion } from './cloud-hypervisor-version.ts'
import { HypervisorError, hypervisorUid, type MachineSpec } from './driver.ts'
import { readFifo } from './fifo.ts'
import { bootId, kernelGaveUp, kvmProblem } from './probe.ts'

export type CloudHypervisorProof =
  | {
      /** the release, e.g. `v53.0` */
      readonly version: string
      readonly landlock: boolean
      readonly problem?: undefined
    }
  | {
      /** why machines cannot run under it, in words */
      readonly problem: string
      /** it is KVM that does not work here, whatever hypervisor is on it */
      readonly isKvm: boolean
    }

export type CloudHypervisorProbeOptions = {
  readonly binary: string
  /** the kernel that machines boot; without one nothing can be proved */
  readonly kernel: string | undefined
  /** place for the try, in a folder of which every user may walk to the kernel and the program */
  readonly directory: string
  /** file that keeps a proof until the server, its kernel, the program or the guests' kernel is another; no failure is kept */
  readonly cachePath: string
  readonly limitMs?: number
  /** tests: another file than /dev/kvm */
  readonly kvmDevice?: string
}

/** An idle server needs 2 s for it; a kernel that hangs early is what is looked for. */
const probeLimitMs = 20_000
/** The highest that there is, which no machine has reached: it has a user of its own. */
const probeMachineId = 2_000_000_000

/**
 * Starts a guest as every machine is started: as a user of its own, confined, with the kernel that machines boot.
 * Without a root that ends with a kernel that looks for one, which is as much proof as wanted.
 */
export async function proveCloudHypervisor(options: CloudHypervisorProbeOptions): Promise<CloudHypervisorProof> {
  const { binary, kernel, cachePath } = options
  const problem = kvmProblem(options.kvmDevice)
  if (problem !== undefined) return { problem, isKvm: true }
  if (kernel === undefined) return { problem: 'there is no guest kernel yet to prove KVM with', isKvm: true }
  const { size, mtimeMs, ino } = await stat(binary)
  const facts = [bootId(), release(), binary, size, mtimeMs, ino, kernel].join(' ')
  const cached = await readCache(cachePath)
  if (cached?.facts === facts) return cached.proof
  const proof = await prove({ ...options, kernel })
  if (proof.problem !== undefined) return proof
  await mkdir(dirname(cachePath), { recursive: true })
  await writeFile(`${cachePath}.new`, JSON.stringify({ facts, proof }))
  await rename(`${cachePath}.new`, cachePath)
  return proof
}

async function prove(options: CloudHypervisorProbeOptions & { kernel: string }): Promise<CloudHypervisorProof> {
  try {
    const version = await programVersion(options.binary)
    abilitiesOf(version)
    const spec = await layOut(options)
    try {
      for (const landlock of [true, false]) {
        const found = await tryKernel(options, spec, version, landlock)
        if (found === 'no landlock') continue
        return found
      }
      return { problem: 'Cloud Hypervisor refuses to go without Landlock', isKvm: false }
    } finally {
      await rm(spec.directory, { recursive: true, force: true })
    }
  } catch (error) {
    if (!(error instanceof HypervisorError)) throw error
    return { problem: error.message, isKvm: false }
  }
}

async function tryKernel(
  { binary, limitMs = probeLimitMs, kvmDevice }: CloudHypervisorProbeOptions,
  spec: MachineSpec,
  version: string,
  landlock: boolean,
): Promise<CloudHypervisorProof | 'no landlock'> {
  const device = kvmDevice === undefined ? {} : { kvmDevice }
  const driver = cloudHypervisorDriver({ binary, version, landlock, cgroups: false, startLimitMs: limitMs, ...device })
  // Left over from a try that was killed.
  await driver.destroy(spec.machineId, spec.directory)
  const running = await driver.start(spec).catch((error: unknown) => {
    if (landlock && error instanceof HypervisorError && /landlock/i.test(error.message)) return undefined
    throw error
  })
  if (!running) return 'no landlock'
  const cameUp = Promise.withResolvers<CloudHypervisorProof>()
  const seconds = limitMs / 1000
  const late = setTimeout(() => {
    const problem = `/dev/kvm is there, but a kernel started under it did not come up within ${seconds} s`
    cameUp.resolve({ problem, isKvm: true })
  }, limitMs)
  let seen = ''
  const close = readFifo(running.consolePath, (chunk) => {
    seen = (seen + chunk.toString('latin1')).slice(-4096)
    if (seen.includes(kernelGaveUp)) cameUp.resolve({ version, landlock })
  })
  running.on((event) => {
    if (event.type !== 'exited') return
    const problem = `/dev/kvm is there, but Cloud Hypervisor ended under it (${event.detail})`
    cameUp.resolve({ problem, isKvm: /vcpu run/.test(event.detail) })
  })
  try {
    return await cameUp.promise
  } finally {
    clearTimeout(late)
    close()
    await running.kill()
  }
}

async function layOut({ directory, kernel }: { directory: string; kernel: string }): Promise<MachineSpec> {
  const uid = hypervisorUid(probeMachineId)
  await rm(directory, { recursive: true, force: true })
  await mkdir(directory, { recursive: true })
  await chmod(dirname(directory), 0o711)
  await chown(directory, 0, uid)
  await chmod(directory, 0o750)
  const disk = join(directory, 'root.raw')
  const file = await open(disk, 'wx', 0o600)
  await file.truncate(2 ** 20)
  await file.chown(uid, uid)
  await file.close()
  const commandLine = 'console=hvc0'
  return { machineId: probeMachineId, directory, cpus: 2, memoryBytes: 256 * 2 ** 20, kernel, commandLine, disk }
}

const cacheShape = z.object({
  facts: z.string(),
  proof: z.object({ version: z.string(), landlock: z.boolean() }),
})

async function readCache(path: string): Promise<z.infer<typeof cacheShape> | undefined> {
  try {
    return cacheShape.parse(JSON.parse(await readFile(path, 'utf8')))
  } catch {
    return undefined
  }
}
