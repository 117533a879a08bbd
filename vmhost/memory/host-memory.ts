import { readFile } from 'node:fs/promises'

/** What a server's kernel says of its memory. */
export type HostMemory = {
  readonly totalBytes: number
  /** that programs can have without anything being swapped out */
  readonly availableBytes: number
  /** undefined where the kernel does not say (CONFIG_PSI, `psi=1`) */
  readonly stall: Stall | undefined
}

/** Share of the last ten seconds in which some, or all, of the programs that could have run waited for memory; 0 to 1. */
export type Stall = { readonly some: number; readonly full: number }

export type KernelFiles = { readonly meminfo: string; readonly pressure: string; readonly processes: string }

/** Tests put files of their own in their place. */
const kernelFiles: KernelFiles = {
  meminfo: '/proc/meminfo',
  pressure: '/proc/pressure/memory',
  processes: '/proc',
}

/**
 * @throws when the kernel does not say how much memory is available: it does since Linux 3.14
 * @see https://docs.kernel.org/filesystems/proc.html, meminfo
 * @see https://docs.kernel.org/accounting/psi.html
 */
export async function readHostMemory(files: KernelFiles = kernelFiles): Promise<HostMemory> {
  const [meminfo, pressure] = await Promise.all([
    readFile(files.meminfo, 'utf8'),
    // Not there, or there and refused with EOPNOTSUPP: switched off on the kernel's command line.
    readFile(files.pressure, 'utf8').catch(() => ''),
  ])
  const [totalBytes, availableBytes] = [bytesOf(meminfo, 'MemTotal'), bytesOf(meminfo, 'MemAvailable')]
  if (totalBytes === undefined || availableBytes === undefined)
    throw new Error(`${files.meminfo} does not say how much memory is available`)
  return { totalBytes, availableBytes, stall: stallOf(pressure) }
}

/** What waits to be written to any disk, or is being written. undefined: the kernel does not say. */
export async function readUnwrittenBytes(
  files: Pick<KernelFiles, 'meminfo'> = kernelFiles,
): Promise<number | undefined> {
  const meminfo = await readFile(files.meminfo, 'utf8')
  const [dirtyBytes, writtenBytes] = [bytesOf(meminfo, 'Dirty'), bytesOf(meminfo, 'Writeback')]
  return dirtyBytes === undefined || writtenBytes === undefined ? undefined : dirtyBytes + writtenBytes
}

/** What a process holds that nobody else does: a hypervisor's guest and its own heap. 0 when it is gone. */
export async function heldBytes(pid: number, files: KernelFiles = kernelFiles): Promise<number> {
  const status = await readFile(`${files.processes}/${pid}/status`, 'utf8').catch(() => '')
  return (bytesOf(status, 'RssAnon') ?? 0) + (bytesOf(status, 'RssShmem') ?? 0)
}

function bytesOf(text: string, name: string): number | undefined {
  const kib = new RegExp(`^${name}:\\s+(\\d+) kB$`, 'm').exec(text)?.[1]
  return kib === undefined ? undefined : Number(kib) * 1024
}

function stallOf(text: string): Stall | undefined {
  const share = (kind: string) => new RegExp(`^${kind} avg10=(\\d+\\.\\d+) `, 'm').exec(text)?.[1]
  const [some, full] = [share('some'), share('full')]
  return some === undefined || full === undefined ? undefined : { some: Number(some) / 100, full: Number(full) / 100 }
}
