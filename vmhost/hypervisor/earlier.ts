import { access, readlink } from 'node:fs/promises'
import { join } from 'node:path'
import { releaseFile } from './cloud-hypervisor-config.ts'
import { type Hypervisor, type HypervisorDriver, hypervisorUid } from './driver.ts'
import { findProcesses } from './process.ts'
import { readSavedBy } from './saved-by.ts'

/**
 * A driver for machines that are started, together with one for those that an earlier choice has started or saved: an
 * operator who installs Cloud Hypervisor, or takes it away, loses none that runs or sleeps under the other.
 * @param preferred starts machines
 * @param other looks after what is its own
 */
export function withEarlier(preferred: HypervisorDriver, other: HypervisorDriver): HypervisorDriver {
  const ownerOf = (isQemu: boolean) => [preferred, other].find(({ name }) => (name === 'qemu') === isQemu) ?? preferred
  return {
    ...preferred,
    obstacle: (state) => ownerOf(readSavedBy(state)?.hypervisor === 'qemu').obstacle(state),
    async start(spec) {
      if (spec.restoreFrom === undefined) return preferred.start(spec)
      return ownerOf(!(await isThere(join(spec.restoreFrom, releaseFile)))).start(spec)
    },
    async adopt(machineId, directory, memoryBytes, signal): Promise<Hypervisor | undefined> {
      const [running] = await findProcesses(hypervisorUid(machineId), directory)
      if (!running) return undefined
      // What a process was started from is the kernel's to say, whoever has taken it over.
      const program = await readlink(`/proc/${running.pid}/exe`).catch(() => '')
      const isQemu = /\/qemu-system-[^/]+$/.test(program.replace(/ \(deleted\)$/, ''))
      return ownerOf(isQemu).adopt(machineId, directory, memoryBytes, signal)
    },
  }
}

function isThere(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  )
}
