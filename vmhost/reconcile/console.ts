import { appendFileSync, closeSync, constants, existsSync, fstatSync, openSync, renameSync } from 'node:fs'
import { Socket } from 'node:net'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Logger } from 'pino'
import type { Rows } from './rows.ts'

/** The file, and one older of the same size beside it. */
const logMostBytes = 4 * 2 ** 20
/** What the gateway can show. */
const keptBytes = 256 * 1024
const chunkMostBytes = 48 * 1024
const sendEveryMs = 400
/**
 * How fast a machine may write: what it writes beyond that, its hypervisor drops. A boot says some 60 KiB in a few
 * seconds; a machine that floods its console costs its server this much and no more.
 */
const burstBytes = 512 * 1024
const bytesPerSecond = 32 * 1024
const tailBytes = 8 * 1024
const sendAgainMs = 5_000
/** What a console that is closed may still wait for the database. */
const lastSendLimitMs = 2_000

type ConsoleRows = Pick<Rows, 'nextConsoleSeq' | 'appendConsole'>

/**
 * Reads a machine's console: all of it goes to console.log, the end of it into the database.
 *
 * The hypervisor writes into a FIFO and drops what does not fit, so neither a machine that floods nor a vmhost that
 * is being restarted costs more than the FIFO's 64 KiB; what was written meanwhile is still in it.
 */
export class ConsoleReader {
  readonly #machineId: number
  readonly #path: string
  readonly #rows: ConsoleRows
  readonly #log: Pick<Logger, 'debug' | 'warn'>
  readonly #socket: Socket
  readonly #boot: number
  #logDescriptor: number | undefined
  #logBytes = 0
  #tail = Buffer.alloc(0)
  #unsent: Buffer[] = []
  #unsentBytes = 0
  #seq: number | undefined
  #sending: Promise<void> | undefined
  #timer: NodeJS.Timeout | undefined
  #allowance = burstBytes
  #allowanceAt = performance.now()
  #resume: NodeJS.Timeout | undefined
  #closed = false
  #onPanic: (() => void) | undefined

  constructor(options: {
    machineId: number
    directory: string
    fifo: string
    boot: number
    rows: ConsoleRows
    log: Pick<Logger, 'debug' | 'warn'>
    /** the guest's kernel says that it has panicked; once, and only what a guest says of itself */
    onPanic: () => void
  }) {
    this.#machineId = options.machineId
    this.#path = join(options.directory, 'console.log')
    this.#boot = options.boot
    this.#rows = options.rows
    this.#log = options.log
    this.#onPanic = options.onPanic
    this.#withLog(() => {})
    // Opened for writing too: without any writer a FIFO is at its end, and the hypervisor comes later than this.
    const descriptor = openSync(options.fifo, constants.O_RDWR | constants.O_NONBLOCK)
    this.#socket = new Socket({ fd: descriptor, readable: true, writable: false })
    this.#socket.on('data', (chunk: Buffer) => this.#take(chunk))
    this.#socket.on('error', (error) => this.#log.warn({ err: error }, 'console'))
    this.#socket.resume()
  }

  /** The last lines, for a reason that people read: without escape sequences and blank lines. */
  lastLines(count: number): string[] {
    return plainText(this.#tail)
      .split(/\r?\n|\r/)
      .map((line) => line.trim())
      .filter((line) => line !== '')
      .slice(-count)
  }

  /** What the kernel said when it gave up, if it did. */
  panic(): string | undefined {
    return /Kernel panic - not syncing: ([^\r\n]{1,200})/.exec(plainText(this.#tail))?.[1]
  }

  /** Takes what the hypervisor has written last, then closes. */
  async close(): Promise<void> {
    if (this.#closed) return
    // One turn of the event loop reads what is in the FIFO.
    await sleep(20)
    this.#closed = true
    clearTimeout(this.#timer)
    clearTimeout(this.#resume)
    this.#socket.destroy()
    if (this.#logDescriptor !== undefined) closeSync(this.#logDescriptor)
    await Promise.race([this.#send(), sleep(lastSendLimitMs, undefined, { ref: false })])
  }

  #take(chunk: Buffer): void {
    if (this.#closed) return
    this.#write(chunk)
    this.#tail = Buffer.concat([this.#tail, chunk]).subarray(-tailBytes)
    if (this.#onPanic && this.#tail.includes('Kernel panic - not syncing')) {
      this.#onPanic()
      this.#onPanic = undefined
    }
    this.#hold([...this.#unsent, chunk])
    this.#timer ??= setTimeout(() => this.#send(), sendEveryMs).unref()
    this.#bound(chunk.length)
  }

  /** Keeps what is not in the database yet; the oldest goes when it is more than the database would keep. */
  #hold(chunks: Buffer[]): void {
    this.#unsent = chunks.filter((chunk) => chunk.length > 0)
    this.#unsentBytes = this.#unsent.reduce((sum, chunk) => sum + chunk.length, 0)
    while (this.#unsentBytes > keptBytes) this.#unsentBytes -= this.#unsent.shift()?.length ?? 0
  }

  #bound(bytes: number): void {
    const now = performance.now()
    const grown = this.#allowance + ((now - this.#allowanceAt) / 1000) * bytesPerSecond
    this.#allowance = Math.min(burstBytes, grown) - bytes
    this.#allowanceAt = now
    if (this.#allowance >= 0) return
    this.#socket.pause()
    clearTimeout(this.#resume)
    this.#resume = setTimeout(() => this.#socket.resume(), (-this.#allowance / bytesPerSecond) * 1000).unref()
  }

  #write(chunk: Buffer): void {
    this.#withLog(() => {
      if (this.#logBytes + chunk.length > logMostBytes) this.#rotate()
      if (this.#logDescriptor !== undefined) appendFileSync(this.#logDescriptor, chunk)
      this.#logBytes += chunk.length
    })
  }

  /** A guest that runs must not be lost for want of a place for what it says. */
  #withLog(act: () => void): void {
    try {
      if (this.#logDescriptor === undefined) {
        this.#logDescriptor = openLog(this.#path)
        this.#logBytes = fstatSync(this.#logDescriptor).size
      }
      act()
    } catch (error) {
      // A full store: the end of the console is still in the database.
      this.#log.debug({ err: error }, 'console.log')
    }
  }

  /** The descriptor is closed when there is another: its number would soon be some other file's. */
  #rotate(): void {
    if (existsSync(this.#path)) renameSync(this.#path, `${this.#path}.1`)
    const next = openLog(this.#path)
    if (this.#logDescriptor !== undefined) closeSync(this.#logDescriptor)
    this.#logDescriptor = next
    this.#logBytes = 0
  }

  #send(): Promise<void> {
    clearTimeout(this.#timer)
    this.#timer = undefined
    this.#sending ??= this.#sendAll().finally(() => {
      this.#sending = undefined
    })
    return this.#sending
  }

  async #sendAll(): Promise<void> {
    try {
      this.#seq ??= await this.#rows.nextConsoleSeq(this.#machineId)
      while (this.#unsentBytes > 0) {
        const whole = Buffer.concat(this.#unsent)
        const chunk = whole.subarray(0, chunkMostBytes)
        this.#hold([whole.subarray(chunkMostBytes)])
        try {
          await this.#rows.appendConsole(this.#machineId, this.#boot, this.#seq, chunk, keptBytes)
        } catch (error) {
          this.#hold([chunk, ...this.#unsent])
          throw error
        }
        this.#seq++
      }
    } catch (error) {
      this.#log.debug({ err: error }, 'the console waits for the database')
      if (!this.#closed) this.#timer ??= setTimeout(() => this.#send(), sendAgainMs).unref()
    }
  }
}

function openLog(path: string): number {
  return openSync(path, constants.O_WRONLY | constants.O_APPEND | constants.O_CREAT | constants.O_NOFOLLOW, 0o600)
}

/** Console output without terminal control, as one can put it into a sentence. */
function plainText(bytes: Buffer): string {
  return bytes
    .toString('utf8')
    .replace(/\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|.)/g, '')
    .replace(/[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd]/g, '')
}
