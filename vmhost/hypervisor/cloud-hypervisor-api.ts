import { request } from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import { HypervisorError } from './driver.ts'
import { connectToOwn } from './own-socket.ts'

/**
 * Cloud Hypervisor's control interface: HTTP over a Unix socket, GET for questions and PUT for everything else.
 *
 * One loop in the process works off all requests, one after the other, so a long one (`vm.snapshot`) delays those that
 * come after it. They wait here instead, each with the whole of its own time from when it leaves.
 * The other side is a process that a machine may have taken over: every answer has a limit of size and time.
 * @see https://github.com/cloud-hypervisor/cloud-hypervisor/blob/main/docs/api.md
 */
export class CloudHypervisorApi {
  readonly #socketPath: string
  readonly #uid: number | undefined
  #last: Promise<unknown> = Promise.resolve()

  /** @param uid whose the socket must be; see own-socket.ts */
  constructor(socketPath: string, uid?: number) {
    this.#socketPath = socketPath
    this.#uid = uid
  }

  /**
   * @param name such as `vm.info`
   * @returns the parsed answer, undefined for an empty one
   * @throws HypervisorError `hypervisor.refused` with its own words, `hypervisor.timeout`, `hypervisor.gone`
   */
  get(name: string, timeoutMs = answerLimitMs): Promise<unknown> {
    return this.#inTurn(() => this.#send('GET', name, undefined, timeoutMs))
  }

  put(name: string, body?: object, timeoutMs = answerLimitMs): Promise<unknown> {
    return this.#inTurn(() => this.#send('PUT', name, body, timeoutMs))
  }

  /** As `put`, past those that wait: for an end that has a limit of its own. */
  putAtOnce(name: string, timeoutMs: number): Promise<unknown> {
    return this.#send('PUT', name, undefined, timeoutMs)
  }

  /**
   * Waits until the process listens and answers.
   * @param signal ends the wait for one that has ended, or that nobody waits for any more
   * @returns what `vmm.ping` said
   */
  async whenThere(timeoutMs: number, signal?: AbortSignal): Promise<{ readonly version: string }> {
    const deadline = Date.now() + timeoutMs
    for (let waitMs = lookAgainMs; ; waitMs = Math.min(waitMs * 2, 200)) {
      try {
        const leftMs = Math.max(deadline - Date.now(), 1)
        const { version } = asObject(await this.#inTurn(() => this.#send('GET', 'vmm.ping', undefined, leftMs, signal)))
        return { version: String(version) }
      } catch (error) {
        if (!(error instanceof HypervisorError) || error.code !== 'hypervisor.gone') throw error
        if (signal?.aborted) throw error
        if (Date.now() + waitMs > deadline) {
          const silent = 'Cloud Hypervisor does not listen on its control socket'
          throw new HypervisorError('hypervisor.timeout', silent, { cause: error })
        }
      }
      await sleep(waitMs)
    }
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const turn = this.#last.then(work, work)
    this.#last = turn.catch(() => {})
    return turn
  }

  #send(
    method: 'GET' | 'PUT',
    name: string,
    body: object | undefined,
    timeoutMs: number,
    signal?: AbortSignal,
  ): Promise<unknown> {
    const text = body === undefined ? '' : JSON.stringify(body)
    return new Promise((resolve, reject) => {
      const call = request({
        path: `/api/v1/${name}`,
        method,
        // Its server takes no chunks; a connection that is kept could end at the very moment of the next request.
        headers: { host: 'localhost', 'content-type': 'application/json', 'content-length': Buffer.byteLength(text) },
        createConnection: () => connectToOwn(this.#socketPath, this.#uid),
        signal,
      })
      const late = setTimeout(() => {
        const words = `Cloud Hypervisor does not answer ${name} within ${Math.ceil(timeoutMs / 1000)} s`
        settle(() => reject(new HypervisorError('hypervisor.timeout', words)))
      }, timeoutMs)
      const settle = (how: () => void) => {
        clearTimeout(late)
        how()
        call.destroy()
      }
      const lost = (cause: Error) =>
        settle(() => reject(new HypervisorError('hypervisor.gone', 'Cloud Hypervisor is not there', { cause })))
      call.on('error', lost)
      call.once('response', (answer) => {
        const chunks: Buffer[] = []
        let bytes = 0
        answer.on('data', (chunk: Buffer) => {
          bytes += chunk.length
          if (bytes <= answerMostBytes) chunks.push(chunk)
          else lost(new Error(`its answer to ${name} has no end`))
        })
        answer.on('error', lost)
        answer.once('close', () => lost(new Error(`it closed the connection within its answer to ${name}`)))
        answer.once('end', () => {
          const said = Buffer.concat(chunks).toString('utf8')
          const status = answer.statusCode ?? 0
          settle(() => {
            if (status >= 200 && status < 300) resolve(parse(said))
            else reject(refusal(name, said))
          })
        })
      })
      call.end(text)
    })
  }
}

/** For what it does at once. It may be activating a device or rebooting its guest meanwhile, on a busy server. */
const answerLimitMs = 30_000
const answerMostBytes = 1 << 20
const lookAgainMs = 5

/** An error's body is the chain of its causes, from the outermost, as a JSON array. */
function refusal(name: string, said: string): HypervisorError {
  const value = parse(said)
  // Some links bring a backtrace along.
  const links = (Array.isArray(value) ? value.map(String) : [said]).map((link) => link.split('\n')[0])
  const words = links.join(': ').slice(0, 600) || 'no reason given'
  const code = /\(os error (\d+)\)/.exec(words)?.[1]
  const cause = code === undefined ? {} : { cause: systemError(Number(code), words) }
  return new HypervisorError('hypervisor.refused', `Cloud Hypervisor refused ${name}: ${words}`, cause)
}

const systemErrors = new Map([
  [5, 'EIO'],
  [12, 'ENOMEM'],
  [13, 'EACCES'],
  [28, 'ENOSPC'],
  [122, 'EDQUOT'],
])

function systemError(errno: number, words: string): NodeJS.ErrnoException {
  return Object.assign(new Error(words), { errno: -errno, code: systemErrors.get(errno) ?? `E${errno}` })
}

function parse(text: string): unknown {
  if (text === '') return undefined
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}

export function asObject(value: unknown): Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {}
}
