import { execFile } from 'node:child_process'
import { constants } from 'node:fs'
import { chmod, chown, copyFile, type FileHandle, lstat, mkdir, open, rename, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import type { CloudHypervisorApi } from './cloud-hypervisor-api.ts'
import { files, parseJson, releaseFile, restoredConfig, savedFiles } from './cloud-hypervisor-config.ts'
import { abilitiesOf } from './cloud-hypervisor-version.ts'
import { keepNames, removeTree, runFolder } from './directory.ts'
import { HypervisorError, hypervisorUid, type MachineSpec } from './driver.ts'
import { processorKind } from './processor.ts'

const execFileAsync = promisify(execFile)

/**
 * @see driver.ts, `stateVersion`: a state is promised to be read by the very release that wrote it, and by no other.
 * @param version the release, e.g. `v53.0`
 */
export function stateVersion(version: string): string {
  return `cloud-hypervisor ${version} kvm ${processorKind()}`
}

/** What the slowest disk takes in a millisecond: saving and restoring have as much more time as the guest is large. */
const perMsBytes = 30_000
const leastLimitMs = 60_000

export function stateLimitMs(memoryBytes: number): number {
  return leastLimitMs + Math.ceil(memoryBytes / perMsBytes)
}

export type StateWriting = {
  readonly api: CloudHypervisorApi
  readonly machineId: number
  /** the machine's, which is the process's working directory */
  readonly directory: string
  readonly target: string
  /** what the guest was promised */
  readonly memoryBytes: number
  /** the release, e.g. `v53.0` */
  readonly version: string
  /** pages that the guest itself has filled with zeroes shall take no space either */
  readonly compact: boolean
}

/**
 * Has Cloud Hypervisor write its guest. It reaches nothing but its own folder, so the files come to be there and are
 * moved away: once they are written, the names in it can be changed by root alone, so that what was looked at is what is
 * moved. It cannot write to files that root makes for it, since it makes them itself.
 */
export async function writeState(writing: StateWriting): Promise<void> {
  const { api, machineId, directory, target, memoryBytes, version, compact } = writing
  const uid = hypervisorUid(machineId)
  const folder = join(directory, files.save)
  try {
    await makeFolder(directory, files.save, uid, 0o770)
    await api.put('vm.snapshot', { destination_url: `file://${files.save}` }, stateLimitMs(memoryBytes))
    await chmod(folder, 0o700)
    for (const name of Object.values(savedFiles)) {
      const file = await openPlain(join(folder, name), uid)
      try {
        // One write each, and its outcome not looked at: on a full disk the end is missing and all seems well.
        if (name !== savedFiles.memory) JSON.parse(await file.readFile('utf8'))
        else if (compact || !abilitiesOf(version).savesSparsely) await digHoles(join(folder, name))
        await rename(join(folder, name), join(target, name))
      } finally {
        await file.close()
      }
    }
    await writeFile(join(target, releaseFile), version, { flag: 'wx', mode: 0o600 })
  } catch (error) {
    const cause = error instanceof HypervisorError && error.cause instanceof Error ? error.cause : error
    const words = error instanceof Error ? error.message : String(error)
    throw new HypervisorError('hypervisor.refused', `The memory could not be written: ${words}`, { cause })
  } finally {
    await removeFolder(directory, files.save, uid)
  }
}

/**
 * Lays a saved guest out for the process that is to go on with it.
 * @returns body of `vm.restore`
 * @throws HypervisorError `hypervisor.unreadable` when what was saved is not all there, or is damaged
 */
export async function prepareRestore(spec: MachineSpec & { restoreFrom: string }, landlock: boolean): Promise<object> {
  const uid = hypervisorUid(spec.machineId)
  const folder = join(spec.directory, files.restore)
  await makeFolder(spec.directory, files.restore, uid, 0o750)
  const config = await readSaved(spec.restoreFrom, savedFiles.config)
  const path = join(folder, savedFiles.config)
  await writeFile(path, JSON.stringify(restoredConfig(config, spec, landlock)), { flag: 'wx', mode: 0o600 })
  await refuseDamaged(spec)
  await chown(path, uid, uid)
  for (const name of [savedFiles.state, savedFiles.memory]) {
    await share(join(spec.restoreFrom, name), join(folder, name), uid)
  }
  return { source_url: `file://${files.restore}` }
}

/**
 * Cloud Hypervisor says of a damaged state what it says of anything that goes wrong, and takes the end that a memory has
 * lost for pages of zeroes.
 * @see fill_saved_regions in its vmm/src/memory_manager.rs; it writes the whole memory or gives the file that size
 */
async function refuseDamaged({ restoreFrom, memoryBytes }: MachineSpec & { restoreFrom: string }): Promise<void> {
  parseJson(await readSaved(restoreFrom, savedFiles.state))
  await using memory = await openSaved(join(restoreFrom, savedFiles.memory))
  if ((await memory.stat()).size < memoryBytes)
    throw new HypervisorError('hypervisor.unreadable', 'The end of the saved memory is missing')
}

/** Which release saved a guest. */
export function savedRelease(directory: string): Promise<string> {
  return readSaved(directory, releaseFile)
}

async function readSaved(directory: string, name: string): Promise<string> {
  await using file = await openSaved(join(directory, name))
  return await file.readFile('utf8')
}

/** Only one that is not there is proved to be lost: another try may find what there are too many open files for. */
async function openSaved(path: string): Promise<FileHandle> {
  try {
    return await open(path, constants.O_RDONLY | constants.O_NOFOLLOW)
  } catch (cause) {
    const code = (cause as NodeJS.ErrnoException).code === 'ENOENT' ? 'hypervisor.unreadable' : 'hypervisor.start'
    throw new HypervisorError(code, 'There is no saved guest to restore', { cause })
  }
}

/** What was laid out takes disk as long as it is there, and is not read again. */
export async function endRestore(directory: string, uid: number): Promise<void> {
  await removeFolder(directory, files.restore, uid)
}

/**
 * How long one may be silent that is writing its guest, or reading it, for a vmhost that was killed meanwhile: it answers
 * nobody before it is through.
 * @param memoryBytes what its guest was promised: what the process itself has mapped, it may have mapped to be waited for
 * @returns undefined when it is at neither
 */
export async function busyLimitMs(directory: string, memoryBytes: number): Promise<number | undefined> {
  const isBusy = (await isThere(join(directory, files.save))) || (await isThere(join(directory, files.restore)))
  return isBusy ? stateLimitMs(memoryBytes) : undefined
}

/** What such a vmhost has left behind. */
export async function forgetUnderWay(directory: string, uid: number): Promise<void> {
  for (const name of [files.save, files.restore]) await removeFolder(directory, name, uid)
}

/** @param mode of root and of the hypervisor's group: whoever may write to it chooses the names in it */
async function makeFolder(directory: string, name: string, uid: number, mode: number): Promise<void> {
  const path = join(directory, name)
  await removeFolder(directory, name, uid)
  await mkdir(path, { mode: 0o700 })
  await chown(path, 0, uid)
  await chmod(path, mode)
}

async function removeFolder(directory: string, name: string, uid: number): Promise<void> {
  // Of one that an earlier version of Berth has started, it was its user's.
  await keepNames(join(directory, runFolder), uid)
  if (await isThere(join(directory, name))) await removeTree(join(directory, name))
}

function isThere(path: string): Promise<boolean> {
  return lstat(path).then(
    () => true,
    () => false,
  )
}

/** Never what a link leads to: a process that its guest may have taken over has made the file. */
async function openPlain(path: string, uid: number): Promise<FileHandle> {
  const file = await open(path, constants.O_RDWR | constants.O_NOFOLLOW | constants.O_NONBLOCK)
  const found = await file.stat()
  if (found.isFile() && found.uid === uid && found.nlink === 1) return file
  await file.close()
  throw new HypervisorError('hypervisor.refused', `${path} is not what was to be written`)
}

/** Gives this user a copy that shares its blocks: what was saved may be restored again, and is nobody's to change. */
async function share(from: string, to: string, uid: number): Promise<void> {
  await using file = await openSaved(from)
  if (!(await file.stat()).isFile()) throw new HypervisorError('hypervisor.start', `${from} is no saved guest`)
  const source = `/proc/${process.pid}/fd/${file.fd}`
  await copyFile(source, to, constants.COPYFILE_EXCL | constants.COPYFILE_FICLONE_FORCE).catch(async () => {
    // A store without reflinks is a test's. Its holes are the guest's empty pages, and stay holes.
    await execFileAsync('cp', ['--sparse=always', source, to])
  })
  await chown(to, uid, uid)
  await chmod(to, 0o600)
}

/** What is nothing but zeroes takes no space, and is read again as zeroes. */
async function digHoles(path: string): Promise<void> {
  await execFileAsync('fallocate', ['--dig-holes', path])
}
