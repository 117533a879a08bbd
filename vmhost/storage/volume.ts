import { mkdir, readFile, realpath, rm, stat, statfs, truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { Logger } from 'pino'
import { type Ballast, planBallast } from './ballast.ts'
import { run } from './command.ts'
import { renameForGood } from './durable.ts'
import { StorageError } from './errors.ts'

/**
 * The store is a folder where files share their blocks (FICLONE), so that copying a disk takes milliseconds whatever
 * its size. Where the data directory's filesystem can do that, the store is a plain folder in it; elsewhere it is an
 * XFS filesystem in the sparse file `volume.xfs`, mounted through a loop device.
 */
export type Volume = {
  readonly path: string
  readonly kind: 'native' | 'xfs'
  /** The file under the volume, when there is one: it lies on a filesystem that can fill up before the volume does. */
  readonly backingFile?: string
  /** what is kept free for others where there is no such file */
  readonly ballast?: Ballast
}

export type VolumeOptions = {
  readonly dataDirectory: string
  readonly log: Pick<Logger, 'info' | 'warn'>
  /** size of a new volume; default: what its filesystem can hold, less a tenth */
  readonly sizeBytes?: number
  /** tests: an XFS volume even where the filesystem has reflink */
  readonly forceVolume?: boolean
}

const GiB = 2 ** 30
/** mkfs.xfs refuses less than 300 MiB. */
const volumeLeastBytes = 320 * 2 ** 20
/** Growing pays from here on. */
const growLeastBytes = 4 * GiB

/** Makes the store usable: finds out about reflink, makes, mounts or grows the volume. Idempotent; one caller at a time. */
export async function prepareVolume(options: VolumeOptions): Promise<Volume> {
  const path = join(options.dataDirectory, 'store')
  const backingFile = join(options.dataDirectory, 'volume.xfs')
  await mkdir(path, { recursive: true, mode: 0o711 })
  const there = (await stat(backingFile).catch(() => undefined)) !== undefined
  // A volume once made stays the store, even if the filesystem has learnt reflink since: the machines are in it.
  if (!there && !options.forceVolume && (await hasReflink(path))) {
    return { path, kind: 'native', ballast: await planBallast(options.dataDirectory) }
  }
  if (!there) await makeVolume(backingFile, options)
  await mountVolume(backingFile, path, options)
  const volume = { path, kind: 'xfs' as const, backingFile }
  await growVolume(volume, options)
  return volume
}

/** Tries FICLONE itself: no list of filesystems' names is right for long. @see ioctl_ficlone(2) */
async function hasReflink(directory: string): Promise<boolean> {
  const from = join(directory, `.reflink-${process.pid}`)
  const to = `${from}.copy`
  try {
    await writeFile(from, Buffer.alloc(4096, 1))
    await run('cp', ['--reflink=always', from, to])
    return true
  } catch (error) {
    if (error instanceof StorageError && error.code !== 'storage.full') return false
    throw error
  } finally {
    await rm(from, { force: true })
    await rm(to, { force: true })
  }
}

async function makeVolume(backingFile: string, options: VolumeOptions): Promise<void> {
  const sizeBytes = options.sizeBytes ?? (await sizeThatFits(backingFile))
  if (sizeBytes < volumeLeastBytes) {
    throw new StorageError(
      'storage.full',
      `There is no room for machines in ${options.dataDirectory}: 1 GiB is the least`,
    )
  }
  // Under another name until it is whole: a volume.xfs that exists is a filesystem.
  const work = `${backingFile}.new`
  await rm(work, { force: true })
  await writeFile(work, '', { mode: 0o600 })
  await truncate(work, sizeBytes)
  await run('mkfs.xfs', ['-q', '-m', 'reflink=1,crc=1', '-L', 'berth', work])
  await run('sync', [work])
  // Under its old name it would be removed by the next start, and every machine with it.
  await renameForGood(work, backingFile)
  options.log.info({ backingFile, sizeBytes }, 'made an XFS volume: the filesystem has no reflink')
}

/** Nine tenths of what the filesystem under it can still give, the volume's own blocks counted as its own. */
async function sizeThatFits(backingFile: string): Promise<number> {
  const { bavail, bsize } = await statfs(join(backingFile, '..'))
  const own = await stat(backingFile).catch(() => undefined)
  const whole = bavail * bsize + (own ? own.blocks * 512 : 0)
  return Math.floor((whole * 0.9) / GiB) * GiB
}

async function mountVolume(backingFile: string, path: string, options: VolumeOptions): Promise<void> {
  if (await isMounted(path)) return
  // Another mount namespace, or a vmhost that was killed, may hold the loop device already. A second device over the
  // same file would be a second filesystem driver writing into it: the volume would be lost.
  const device = await loopDeviceOf(backingFile)
  if (device) {
    await run('mount', ['-t', 'xfs', '-o', 'discard,noatime', device, path])
    return
  }
  const loop = ['-t', 'xfs', '-o', 'loop,discard,noatime', backingFile, path]
  try {
    await run('mount', loop)
  } catch (error) {
    if (!(await makeLoopNode())) throw error
    await run('mount', loop)
  }
  const made = await loopDeviceOf(backingFile)
  // Without it every block lies in the page cache twice. Not every filesystem can, and it works without.
  if (made)
    await run('losetup', ['--direct-io=on', made]).catch((error) => options.log.warn({ err: error }, 'no direct I/O'))
}

export async function loopDeviceOf(backingFile: string): Promise<string | undefined> {
  const devices = (await run('losetup', ['-j', backingFile, '-n', '-O', 'NAME'])).trim().split('\n')
  return devices[0]?.trim() || undefined
}

/** In a container /dev has only the loop devices that somebody made; the kernel has more. */
async function makeLoopNode(): Promise<boolean> {
  const device = (await run('losetup', ['-f']).catch(() => '')).trim()
  const number = /^\/dev\/loop([0-9]+)$/.exec(device)?.[1]
  if (number === undefined || (await stat(device).catch(() => undefined))) return false
  await run('mknod', ['-m', '600', device, 'b', '7', number])
  return true
}

export async function isMounted(path: string): Promise<boolean> {
  const mountPoint = await realpath(path)
  const text = await readFile('/proc/self/mountinfo', 'utf8')
  // The fifth field; blanks and the like are octal escapes. @see proc_pid_mountinfo(5)
  return text.split('\n').some((line) => unescapeOctal(line.split(' ')[4] ?? '') === mountPoint)
}

function unescapeOctal(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_, digits: string) => String.fromCharCode(Number.parseInt(digits, 8)))
}

/** Makes the volume as large as its filesystem allows by now; an operator who adds disk does nothing else. */
export async function growVolume(volume: Volume, options: Pick<VolumeOptions, 'sizeBytes' | 'log'>): Promise<void> {
  if (!volume.backingFile) return
  const { size } = await stat(volume.backingFile)
  const wanted = options.sizeBytes ?? (await sizeThatFits(volume.backingFile))
  if (options.sizeBytes === undefined ? wanted < size + growLeastBytes : wanted <= size) return
  await truncate(volume.backingFile, wanted)
  const device = await loopDeviceOf(volume.backingFile)
  if (!device) return
  await run('losetup', ['-c', device])
  await run('xfs_growfs', ['-d', volume.path])
  options.log.info({ from: size, to: wanted }, 'the volume has grown')
}

/** Takes the volume away until the next `prepareVolume`. @throws StorageError while somebody, such as a machine, works in it */
export async function unmountVolume(volume: Volume): Promise<void> {
  if (volume.kind === 'xfs' && (await isMounted(volume.path))) await run('umount', [volume.path])
}
