/**
 * What a command on a machine prints, as the body of one response. In the form of NDJSON, one object with one key a
 * line, an empty line as a sign of life:
 *
 *     {"stdout":"<base64>"}  {"stderr":"<base64>"}  …  then {"exit_code":n} or {"error":text}, and nothing behind
 *
 * As text, both outputs as they come, and the exit status in the trailer X-Exe-Exit. A client that does not read stops
 * the command on the machine: at most a window of SSH (256 KiB) and a piece of it in base64 are held for it.
 */
import type { ServerResponse } from 'node:http'
import type { Readable } from 'node:stream'
import { exitOf } from '../../commands/ssh.ts'
import type { RunningCommand } from '../../ssh/pool/run-on-machine.ts'
import { PacedResponse } from './paced.ts'

/** Of output in one line: in base64 well below the 1 MiB that clients read of one. */
const PIECE_BYTES = 65_536
/** As ssh reports what is no exit status of the command's own. */
const LOST_STATUS = 255

export class ProcessOutput {
  readonly #paced: PacedResponse
  readonly #isNdjson: boolean
  readonly #heartbeatMs: number

  constructor(response: ServerResponse, options: { isNdjson: boolean; heartbeatMs: number }) {
    this.#paced = new PacedResponse(response)
    this.#isNdjson = options.isNdjson
    this.#heartbeatMs = options.heartbeatMs
  }

  get begun(): boolean {
    return this.#paced.begun
  }

  get sentBytes(): number {
    return this.#paced.sentBytes
  }

  /** Sends the head; from here on an error is part of the body. */
  begin(): void {
    if (this.#isNdjson) this.#paced.begin({ 'Content-Type': 'application/x-ndjson' }, this.#heartbeatMs)
    else this.#paced.begin({ 'Content-Type': 'text/plain; charset=utf-8', Trailer: 'X-Exe-Exit' })
  }

  /**
   * Passes on what a process prints until it ends. When the signal is aborted first, the process is ended.
   * @returns its exit status as a shell counts
   * @throws MachineUnreachableError when the machine is lost; the signal's reason
   */
  async carry(remote: RunningCommand, signal: AbortSignal): Promise<number> {
    remote.stdin.on('error', () => {})
    remote.stdin.end()
    const { promise: aborted, reject } = Promise.withResolvers<never>()
    aborted.catch(() => {})
    const onAbort = () => reject(signal.reason)
    signal.addEventListener('abort', onAbort, { once: true })
    if (signal.aborted) onAbort()
    try {
      this.begin()
      const printed = [this.#pour(remote.stdout, 'stdout'), this.#pour(remote.stderr, 'stderr')]
      const joined = Promise.all([remote.exit, ...printed])
      const [end] = await Promise.race([joined, aborted])
      remote.close()
      return exitOf(end)
    } catch (error) {
      void remote.end()
      throw error
    } finally {
      signal.removeEventListener('abort', onAbort)
    }
  }

  /** The last line. */
  end(status: number): void {
    if (this.#paced.isOver) return
    if (this.#isNdjson) this.#paced.write(`${JSON.stringify({ exit_code: status })}\n`)
    else this.#paced.response.addTrailers({ 'X-Exe-Exit': String(status) })
    this.#paced.end()
  }

  /** The last line, when there is no exit status. */
  fail(error: string): void {
    this.#paced.write(this.#isNdjson ? `${JSON.stringify({ error })}\n` : `${error}\n`)
    if (this.#isNdjson) this.#paced.end()
    else this.end(LOST_STATUS)
  }

  async #pour(from: Readable, name: 'stdout' | 'stderr'): Promise<void> {
    // The channel is this loop's to read and not to close: a process may have to be told to end over it.
    for await (const chunk of from.iterator({ destroyOnReturn: false })) {
      const bytes = chunk as Buffer
      for (let start = 0; start < bytes.length; start += PIECE_BYTES) {
        const piece = bytes.subarray(start, start + PIECE_BYTES)
        this.#paced.write(this.#isNdjson ? `{"${name}":"${piece.toString('base64')}"}\n` : piece)
        await this.#paced.taken()
        if (this.#paced.isOver) return
      }
    }
  }
}
