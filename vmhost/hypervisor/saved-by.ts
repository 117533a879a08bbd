/** A guest's `stateVersion`, as the drivers write it. */
export type SavedBy = {
  readonly hypervisor: 'qemu' | 'cloud-hypervisor'
  /** QEMU's kind of machine, e.g. `pc-q35-7.2`; Cloud Hypervisor's release, e.g. `v53.0` */
  readonly version: string
  readonly accelerator: 'kvm' | 'tcg'
  /** under KVM; see processor.ts */
  readonly processor: string | undefined
}

/** @returns undefined for one that no driver here has written */
export function readSavedBy(stateVersion: string): SavedBy | undefined {
  const [, hypervisor, version, accelerator, processor] =
    /^(qemu|cloud-hypervisor) (\S+) (kvm|tcg)(?: (\S+))?$/.exec(stateVersion) ?? []
  if (hypervisor !== 'qemu' && hypervisor !== 'cloud-hypervisor') return undefined
  if (version === undefined || (accelerator !== 'kvm' && accelerator !== 'tcg')) return undefined
  return { hypervisor, version, accelerator, processor }
}

/** @returns e.g. `QEMU 7.2 under KVM`, `QEMU 7.2`, `Cloud Hypervisor v53.0` */
export function saverInWords(stateVersion: string): string {
  const saved = readSavedBy(stateVersion)
  if (!saved) return `another hypervisor (${stateVersion})`
  if (saved.hypervisor === 'cloud-hypervisor') return `Cloud Hypervisor ${saved.version}`
  const release = saved.version.replace(/^pc-q35-/, '')
  return `QEMU ${release}${saved.accelerator === 'kvm' ? ' under KVM' : ''}`
}

/** Why it cannot go on, where that is missing altogether which saved it. */
export function saverIsAway(stateVersion: string): string {
  return `Its memory was saved by ${saverInWords(stateVersion)}, which its server does not have now`
}
