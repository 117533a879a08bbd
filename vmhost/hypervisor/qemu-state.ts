import { type ChildProcess, spawn } from 'node:child_process'
import { closeSync, constants, createReadStream, fstatSync, openSync, readSync, unlinkSync } from 'node:fs'
import { type FileHandle, lchown, open, rm } from 'node:fs/promises'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { type Accelerator, HypervisorError } from './driver.ts'
import { processorKind } from './processor.ts'
import { asObject } from './qmp.ts'

/** A guest's state within the directory that it is saved to: QEMU's own migration stream, as it is or as one zstd frame. */
export const stateFile = 'state'

/**
 * The versioned kind of machine, under which QEMU keeps what a guest sees the same from one release to the next.
 * @param version as `qemu --version` says it, e.g. `7.2.22`
 */
export function machineType(version: string): string {
  const release = /^(\d+\.\d+)\./.exec(version)
  return release ? `pc-q35-${release[1]}` : 'q35'
}

/**
 * @see driver.ts, `stateVersion`: a kind of machine is read by every QEMU that has it, which security updates of one
 * release and the releases that follow do. A processor that is handed through must have what it had.
 */
export function stateVersion(machineType: string, accelerator: Accelerator): string {
  return ['qemu', machineType, accelerator, ...(accelerator === 'kvm' ? [processorKind()] : [])].join(' ')
}

export type StateWriting = {
  /** QMP of the QEMU whose guest stands still */
  readonly execute: (command: string, args?: object) => Promise<unknown>
  /** of QEMU's user */
  readonly uid: number
  /** working directory of QEMU, which only root may write to */
  readonly directory: string
  readonly target: string
  /** half the bytes for the time of one processor */
  readonly compact: boolean
}

/** Nothing came for so long: it never will. A disk that is busy with others takes seconds. */
const silenceLimitMs = 60_000
/** A guest may be standing still for it while its users wait. */
const lookAgainMs = 4
const socketName = 'saving.sock'
/** More would take three times as long to save a twentieth of the space. */
const packing = ['zstd', '-1', '-q', '-c']
const saidMost = 300
/** @see RFC 8878, 3.1.1 */
const zstdMagic = 0xfd2fb528

/**
 * Has QEMU write its guest into a file. It may start no process (`exec:`) and open no file here, so it hands the bytes
 * over a socket, and whoever has the other end writes them.
 * @see https://www.qemu.org/docs/master/devel/migration/main.html
 */
export async function writeState({ execute, uid, directory, target, compact }: StateWriting): Promise<void> {
  const path = `${directory}/${socketName}`
  const file = await open(target, 'wx', 0o600)
  const receiver = createReceiver(file, compact)
  try {
    await rm(path, { force: true })
    await receiver.listen(path)
    await lchown(path, uid, uid)
    // The default, 128 MiB/s, is meant for networks that others use too. Its guest stands still, so nothing is sent twice.
    await execute('migrate-set-parameters', { 'max-bandwidth': 2 ** 40 })
    await execute('migrate', { uri: `unix:${socketName}` })
    await untilCompleted(execute, receiver, file)
    await receiver.done
  } catch (error) {
    await endWriting(execute)
    // A disk that is full is the cause, and that QEMU could not get rid of its bytes is what came of it.
    const cause = receiver.failure ?? error
    const words = cause instanceof Error ? cause.message : String(cause)
    throw new HypervisorError('hypervisor.refused', `The memory could not be written: ${words}`, { cause })
  } finally {
    receiver.close()
    await file.close().catch(() => {})
    await rm(path, { force: true })
  }
}

type Execute = StateWriting['execute']

async function untilCompleted(execute: Execute, receiver: Receiver, file: FileHandle): Promise<void> {
  for (let heardAt = performance.now(), heard = 0; ; ) {
    const { status, 'error-desc': why } = asObject(await execute('query-migrate'))
    if (status === 'completed') return
    if (status === 'failed' || status === 'cancelled' || receiver.failure) {
      throw new HypervisorError('hypervisor.refused', `QEMU stopped half way${why ? `: ${why}` : ''}`)
    }
    const { size } = await file.stat()
    if (size !== heard) {
      heard = size
      heardAt = performance.now()
    } else if (performance.now() - heardAt > silenceLimitMs) {
      throw new HypervisorError('hypervisor.timeout', `Nothing came from QEMU for ${silenceLimitMs / 1000} s`)
    }
    await sleep(lookAgainMs)
  }
}

/** A guest goes on only when nothing of it is being written any more: before that, QEMU refuses it. */
export async function endWriting(execute: Execute): Promise<void> {
  await execute('migrate_cancel').catch(() => {})
  await untilOver(execute).catch(() => {})
}

async function untilOver(execute: Execute): Promise<void> {
  for (const deadline = performance.now() + 5_000; performance.now() < deadline; await sleep(lookAgainMs)) {
    const { status } = asObject(await execute('query-migrate'))
    const isOver = status === undefined || ['none', 'completed', 'failed', 'cancelled'].includes(String(status))
    // It says so a moment before its guest may go on.
    if (isOver && asObject(await execute('query-status')).status !== 'finish-migrate') return
  }
}

type Receiver = {
  listen(path: string): Promise<void>
  /** Resolves when the kernel has all that was sent. */
  readonly done: Promise<void>
  readonly failure: unknown
  close(): void
}

/**
 * Takes what is sent to a socket into a file. No byte of it passes through this process, whose other work it would wait
 * for and which would take longer than the writing: a program reads the connection itself. It ends with this process,
 * so that QEMU knows that nobody writes any more.
 * @see setpriv(1) "--pdeathsig"
 */
function createReceiver(file: FileHandle, compact: boolean): Receiver {
  const server = createServer({ pauseOnConnect: true })
  const { promise: done, resolve, reject } = Promise.withResolvers<void>()
  let writer: ChildProcess | undefined
  let failure: unknown
  done.catch((error: unknown) => {
    failure = error
  })
  server.once('connection', (socket) => {
    server.close()
    const program = compact ? packing : ['cat']
    let said = ''
    writer = spawn('setpriv', ['--pdeathsig=KILL', '--', ...program], {
      stdio: [socket, file.fd, 'pipe'],
      env: { PATH: process.env.PATH, LC_ALL: 'C' },
    })
    socket.destroy()
    writer.stderr?.on('data', (chunk: Buffer) => {
      said = (said + chunk).slice(0, saidMost)
    })
    writer.once('error', reject)
    writer.once('close', (status) => {
      if (status === 0) resolve()
      else reject(refusalOf(said))
    })
  })
  return {
    listen: (path) =>
      new Promise((listening, failed) => {
        server.once('error', failed)
        server.listen({ path }, listening)
      }),
    done,
    get failure() {
      return failure
    },
    close() {
      server.close()
      writer?.kill('SIGKILL')
    },
  }
}

/** @returns what a program said in the C locale when it could not write, as the kernel's error where it is known */
function refusalOf(said: string): Error {
  const code = said.includes('No space left on device')
    ? 'ENOSPC'
    : said.includes('Disk quota exceeded')
      ? 'EDQUOT'
      : ''
  return Object.assign(new Error(said.trim() || 'What writes it was ended'), code === '' ? {} : { code })
}

/** A saved guest on its way into a QEMU that is being started. */
export type SavedState = {
  readonly sizeBytes: number
  /** what the new process gets: the file itself, or the end of a pipe that another process unpacks it into */
  readonly descriptor: number
  /** rejects when it cannot be unpacked; QEMU waits for ever for the first byte of a pipe that nobody writes to */
  readonly failed: Promise<never>
  /** somebody ended whoever unpacks it: QEMU has seen its beginning alone, and may say anything about that */
  readonly isCutOff: boolean
  /** The new process has it, or there will be none; may be called again. */
  close(): void
}

/**
 * Opened here because it is root's. Never what a link leads to: whoever took over a QEMU would have another file read.
 * What is packed never passes through this process, which would take as long again as unpacking it.
 * @param pipe a FIFO that nobody else has open, for what is packed; gone when this returns
 * @throws HypervisorError when there is none
 */
export function openState(directory: string, pipe: string): SavedState {
  let descriptor: number
  try {
    descriptor = openSync(join(directory, stateFile), constants.O_RDONLY | constants.O_NOFOLLOW)
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code === 'ENOENT' ? 'hypervisor.unreadable' : 'hypervisor.start'
    throw new HypervisorError(code, 'There is no saved guest to restore', { cause: error })
  }
  const sizeBytes = fstatSync(descriptor).size
  const magic = Buffer.alloc(4)
  readSync(descriptor, magic, 0, magic.length, 0)
  const { promise: failed, reject } = Promise.withResolvers<never>()
  failed.catch(() => {})
  if (magic.readUInt32LE() !== zstdMagic)
    return { sizeBytes, descriptor, failed, isCutOff: false, close: closingOnce(descriptor) }
  try {
    // In this order neither waits for the other. QEMU makes its end what it wants it to be.
    const out = openSync(pipe, constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOFOLLOW)
    const into = openSync(pipe, constants.O_WRONLY | constants.O_NOFOLLOW)
    // Who unpacks for a QEMU that was ended a moment ago must not go on into that of the next one.
    unlinkSync(pipe)
    // That QEMU has ended, zstd hears from the pipe; that this process has, from nobody.
    const unpacking = spawn('zstd', ['-dcq'], { stdio: [descriptor, into, 'ignore'], detached: true })
    unpacking.once('error', reject)
    let isCutOff = false
    unpacking.once('exit', (status, signal) => {
      // A QEMU that reads no further ends it by this one.
      isCutOff = signal !== null && signal !== 'SIGPIPE'
      if (status !== 0) reject(new Error('zstd could not unpack the saved guest'))
    })
    unpacking.unref()
    closeSync(into)
    closeSync(descriptor)
    const close = closingOnce(out)
    return {
      sizeBytes,
      descriptor: out,
      failed,
      get isCutOff() {
        return isCutOff
      },
      close,
    }
  } catch (error) {
    closeSync(descriptor)
    throw new HypervisorError('hypervisor.start', 'The saved guest cannot be unpacked', { cause: error })
  }
}

/** What QEMU says of a stream that is not one, is of something else than its machine, or ends before its end. */
const refusal = /load of migration failed: (Invalid argument|Operation not supported|Input\/output error)/
const readAtOnceBytes = 2 ** 20

/**
 * Whether QEMU has refused a saved guest for what is in it, so that every other try would fail too. That it ends too
 * early QEMU says as well where what unpacks it was ended, or the disk could not be read: so it is read once more.
 * @param said QEMU's last words; it has ended by itself
 */
export async function isUnreadable(directory: string, said: string): Promise<boolean> {
  const path = join(directory, stateFile)
  try {
    let isPacked: boolean | undefined
    for await (const chunk of createReadStream(path, { highWaterMark: readAtOnceBytes })) {
      isPacked ??= (chunk as Buffer).length >= 4 && (chunk as Buffer).readUInt32LE() === zstdMagic
    }
    if (isPacked && !(await unpacks(path))) return true
    const [, why] = refusal.exec(said) ?? []
    return why !== undefined && !(isPacked && why === 'Input/output error')
  } catch {
    return false
  }
}

/** @returns false when it is damaged. @throws when that was not to be found out */
function unpacks(path: string): Promise<boolean> {
  return new Promise((resolve, reject) => {
    const testing = spawn('zstd', ['-tq', '--', path], { stdio: 'ignore' })
    testing.once('error', reject)
    // Any other failure is the server's, as is the signal of whoever ended it.
    testing.once('exit', (status) => {
      if (status === 0 || status === 1) resolve(status === 0)
      else reject(new Error(`zstd ended with ${status}`))
    })
  })
}

function closingOnce(descriptor: number): () => void {
  let isOpen = true
  return () => {
    if (isOpen) closeSync(descriptor)
    isOpen = false
  }
}
