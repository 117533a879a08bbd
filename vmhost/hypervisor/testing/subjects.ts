import { cloudHypervisorDriver } from '../cloud-hypervisor.ts'
import { CloudHypervisorPrograms } from '../cloud-hypervisor-programs.ts'
import { programVersion } from '../cloud-hypervisor-version.ts'
import type { HypervisorDriver } from '../driver.ts'
import { kvmGroups } from '../privileges.ts'
import { kvmProblem } from '../probe.ts'
import { qemuDriver, qemuVersion } from '../qemu.ts'
import { makeTinyGuest, makeTinyPvhGuest, type TinyGuest } from '../tiny-guest.ts'
import { named, proof } from './named.ts'

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
  /** those that its process has, to come to /dev/kvm */
  groups(): readonly number[]
  /** a guest that runs can be given more */
  readonly resizes: boolean
  /** how a guest has said that it is in trouble when it does not start, in the hypervisor's words */
  readonly missingDisk: RegExp
}

export const qemu: Subject = {
  name: 'QEMU',
  absent: undefined,
  absentForLinux: undefined,
  driver: async (_store, { adoptLimitMs = 10_000 } = {}) =>
    qemuDriver({ accelerator: 'tcg', version: await qemuVersion(), cgroups: false, adoptLimitMs }),
  makeGuest: makeTinyGuest,
  groups: () => [],
  resizes: false,
  missingDisk: /QEMU did not start: .*root\.raw.*No such file/,
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
  groups() {
    const access = kvmGroups()
    return 'groups' in access ? access.groups : []
  },
  resizes: true,
  missingDisk: /Cloud Hypervisor did not start: .*No such file/,
}

export const subjects = [qemu, cloudHypervisor]
