import { execFile } from 'node:child_process'
import { chmod, chown, lchown, mkdir, rename, rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { groupName, killGroup, unconfine } from './cgroup.ts'
import { hypervisorUid } from './driver.ts'
import { endProcess, findProcesses } from './process.ts'

const execFileAsync = promisify(execFile)

/**
 * What a hypervisor makes itself lies in this folder of its machine's, the only one that its user may write. It is
 * root's and sticky: what root makes in it nobody else can put something in the place of. @see inode(7) "S_ISVTX"
 */
export const runFolder = 'run'

/**
 * Lays out what a hypervisor needs in its machine's directory, which is root's and closed to its user but for `run/`:
 * nothing that root reads or writes there can be replaced by a hypervisor that was taken over.
 * @param uid the hypervisor's
 * @param fifos names of those that it, or this process for it, writes into; made when missing
 * @param fifoUid whose they are
 */
export async function prepareDirectory(
  directory: string,
  uid: number,
  fifos: readonly string[],
  fifoUid: number,
): Promise<void> {
  const run = join(directory, runFolder)
  // Emptied and made anew: no leftover of an earlier run, and no trap laid by one.
  await removeTree(run)
  await mkdir(`${run}.new`, { recursive: true, mode: 0o700 })
  await keepNames(`${run}.new`, uid)
  await rename(`${run}.new`, run)
  const paths = fifos.map((name) => join(directory, name))
  const missing: string[] = []
  for (const path of paths) {
    if ((await stat(path).catch(() => undefined))?.isFIFO()) continue
    await rm(path, { force: true })
    missing.push(path)
  }
  if (missing.length > 0) await execFileAsync('mkfifo', ['-m', '600', ...missing])
  // Found, it may be another hypervisor's, under which the machine ran before.
  for (const path of paths) await lchown(path, fifoUid, fifoUid)
}

/**
 * Has a folder that root has made, in one that is root's, hold what this user makes and root makes, each its own.
 * @param uid the hypervisor's
 */
export async function keepNames(folder: string, uid: number): Promise<void> {
  await chown(folder, 0, uid)
  await chmod(folder, 0o1770)
}

/** Removes what a hypervisor may have made or still be changing: no step of it follows a link. @see rm(1), fts(3) */
export async function removeTree(path: string): Promise<void> {
  await execFileAsync('rm', ['-rf', '--one-file-system', '--', path])
}

/**
 * As every driver's `destroy`: whatever runs in a machine's directory under its uid is ended by SIGKILL, and whatever is
 * in its cgroup where it has one, which one that was taken over cannot leave as it can its directory.
 * @param groups the parent of the machines' cgroups; see cgroup.ts
 */
export async function destroy(machineId: number, directory: string, groups?: string): Promise<number> {
  const found = await findProcesses(hypervisorUid(machineId), directory)
  const group = groupName(machineId, directory)
  const confined = await killGroup(group, groups)
  await Promise.all(found.map(endProcess))
  await unconfine(group, groups)
  return new Set([...found.map(({ pid }) => pid), ...confined]).size
}
