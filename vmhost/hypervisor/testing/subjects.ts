import { readFileSync } from 'node:fs'
import { release } from 'node:os'
import { cloudHypervisorDriver } from '../cloud-hypervisor.ts'
import { CloudHypervisorPrograms } from '../cloud-hypervisor-programs.ts'
import { programVersion } from '../cloud-hypervisor-version.ts'
import type { HypervisorDriver } from '../driver.ts'
import { kvmProblem } from '../probe.ts'
import { qemuDriver } from '../qemu.ts'
import { makeTinyGuest, makeTinyPvhGuest, type TinyGuest } from '../tiny-guest.ts'

/** A hypervisor that the drivers' tests are run against. */
export type Subject = {
  readonly name: 'QEMU' | 'Cloud Hypervisor'
  /** why its tests are not run here; undefined: they are */
  readonly absent: string | undefined
  /** @param store folder that every user may walk through */
  driver(store: string, options?: { adoptLimitMs?: number }): Promise<HypervisorDriver>
  makeGuest(path: string, guest: TinyGuest): Promise<void>
  /** how a guest has said that it is in trouble when it does not start, in the hypervisor's words */
  readonly missingDisk: RegExp
}

const qemu: Subject = {
  name: 'QEMU',
  absent: undefined,
  driver: async (_store, { adoptLimitMs = 10_000 } = {}) =>
    qemuDriver({ accelerator: 'tcg', version: 'test', cgroups: false, adoptLimitMs }),
  makeGuest: makeTinyGuest,
  missingDisk: /QEMU did not start: .*root\.raw.*No such file/,
}

const named = process.env.CLOUD_HYPERVISOR

const cloudHypervisor: Subject = {
  name: 'Cloud Hypervisor',
  absent: named === undefined ? 'CLOUD_HYPERVISOR names no program' : kvmProblem(),
  async driver(store, { adoptLimitMs = 30_000 } = {}) {
    if (named === undefined) throw new Error('there is none')
    const version = await programVersion(named)
    const binary = await new CloudHypervisorPrograms(`${store}/hypervisors`).keep(named, version)
    return cloudHypervisorDriver({ binary, version, landlock: hasLandlock(), cgroups: false, adoptLimitMs })
  },
  makeGuest: makeTinyPvhGuest,
  missingDisk: /Cloud Hypervisor did not start: .*No such file/,
}

export const subjects = [qemu, cloudHypervisor]

/** Truncating is what Linux 6.2 has added, and what Cloud Hypervisor insists on. */
function hasLandlock(): boolean {
  const [major, minor] = release().split('.').map(Number)
  const isNew = Number(major) > 6 || (Number(major) === 6 && Number(minor) >= 2)
  try {
    return isNew && readFileSync('/sys/kernel/security/lsm', 'utf8').split(',').includes('landlock')
  } catch {
    return false
  }
}
