import { chmod, copyFile, mkdir, rename } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { testArtifacts } from '../../../test/e2e/artifacts.ts'
import { cloudHypervisorDriver } from '../cloud-hypervisor.ts'
import { type CloudHypervisorProof, proveCloudHypervisor } from '../cloud-hypervisor-probe.ts'
import { CloudHypervisorPrograms } from '../cloud-hypervisor-programs.ts'
import { programVersion } from '../cloud-hypervisor-version.ts'
import type { HypervisorDriver } from '../driver.ts'
import { kvmProblem } from '../probe.ts'
import { qemuDriver, qemuVersion } from '../qemu.ts'
import { makeTinyGuest, makeTinyPvhGuest, type TinyGuest } from '../tiny-guest.ts'

/** A hypervisor that the drivers' tests are run against. */
export type Subject = {
  readonly name: 'QEMU' | 'Cloud Hypervisor'
  /** why its tests are not run here; undefined: they are */
  readonly absent: string | undefined
  /** the same for tests with a guest of more than a few bytes, which not every KVM runs */
  readonly absentForLinux: string | undefined
  /** @param store folder that every user may walk through */
  driver(store: string, options?: { adoptLimitMs?: number }): Promise<HypervisorDriver>
  makeGuest(path: string, guest: TinyGuest): Promise<void>
  /** a guest that runs can be given more */
  readonly resizes: boolean
  /** how a guest has said that it is in trouble when it does not start, in the hypervisor's words */
  readonly missingDisk: RegExp
}

const qemu: Subject = {
  name: 'QEMU',
  absent: undefined,
  absentForLinux: undefined,
  driver: async (_store, { adoptLimitMs = 10_000 } = {}) =>
    qemuDriver({ accelerator: 'tcg', version: await qemuVersion(), cgroups: false, adoptLimitMs }),
  makeGuest: makeTinyGuest,
  resizes: false,
  missingDisk: /QEMU did not start: .*root\.raw.*No such file/,
}

/** The program that is to be tried, if any. */
export const named = process.env.CLOUD_HYPERVISOR

/**
 * Whether guests run under Cloud Hypervisor here, found out as a vmhost does it, once a boot of the server.
 * @returns undefined when there is no program to be tried
 */
export async function proof(): Promise<CloudHypervisorProof | undefined> {
  if (named === undefined) return undefined
  // Where every user may walk to, which a checkout need not be.
  const place = join(tmpdir(), 'berth-test-cloud-hypervisor')
  await mkdir(place, { recursive: true })
  await chmod(place, 0o711)
  const kernel = join(place, 'vmlinuz')
  // Files of tests run at the same time: each replaces it whole.
  await copyFile(join(await testArtifacts(), 'boot', 'current', 'vmlinuz'), `${kernel}.${process.pid}`)
  await rename(`${kernel}.${process.pid}`, kernel)
  const binary = await new CloudHypervisorPrograms(join(place, 'hypervisors')).keep(named, await programVersion(named))
  return proveCloudHypervisor({
    binary,
    kernel,
    directory: join(place, 'probe', String(process.pid)),
    cachePath: join(place, 'proof.json'),
    limitMs: Number(process.env.BERTH_TEST_KVM_LIMIT_MS ?? 20_000),
  })
}

const proved = await proof()

const cloudHypervisor: Subject = {
  name: 'Cloud Hypervisor',
  absent: named === undefined ? 'CLOUD_HYPERVISOR names no program' : kvmProblem(),
  absentForLinux: proved === undefined ? 'CLOUD_HYPERVISOR names no program' : proved.problem,
  async driver(store, { adoptLimitMs = 30_000 } = {}) {
    if (named === undefined) throw new Error('there is none')
    const version = await programVersion(named)
    const landlock = proved?.problem === undefined && proved?.landlock === true
    const binary = await new CloudHypervisorPrograms(`${store}/hypervisors`).keep(named, version)
    return cloudHypervisorDriver({ binary, version, landlock, cgroups: false, adoptLimitMs })
  },
  makeGuest: makeTinyPvhGuest,
  resizes: true,
  missingDisk: /Cloud Hypervisor did not start: .*No such file/,
}

export const subjects = [qemu, cloudHypervisor]
