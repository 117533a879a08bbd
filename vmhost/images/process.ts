import { type ChildProcess, fork, type SpawnOptions, spawn } from 'node:child_process'
import { once } from 'node:events'
import type { Writable } from 'node:stream'
import { ImageError } from './errors.ts'
import type { Inspected, Job, Progress, Reply, Request, Resolved } from './worker.ts'

/**
 * The worker and the tar beside it, as the vmhost sees them: started together, because the archive goes from one to the
 * other without passing here, and ended together.
 */
export type Pull = AsyncDisposable & {
  resolve(job: Job): Promise<Resolved>
  fetch(): Promise<void>
  merge(): Promise<Inspected>
  /** Resolves when all files are in the folder. */
  unpack(): Promise<void>
}

/** A worker that grows beyond this has been given something to choke on. */
const heapMebibytes = 1280

/**
 * @param tree an empty folder that the image's files go to
 * @param blobs the folder that is the worker's own
 */
export function startPull(tree: string, blobs: string, onProgress: (progress: Progress) => void): Pull {
  return new PullProcesses(tree, blobs, onProgress)
}

class PullProcesses implements Pull {
  readonly #worker: ChildProcess
  readonly #tar: ChildProcess
  readonly #tarEnd: Promise<{ failed: string | undefined }>
  readonly #workerEnd: Promise<unknown>
  readonly #onProgress: (progress: Progress) => void
  #complaints = ''
  #last = ''
  #waiting: { resolve: (done: unknown) => void; reject: (error: Error) => void } | undefined

  constructor(tree: string, blobs: string, onProgress: (progress: Progress) => void) {
    this.#onProgress = onProgress
    this.#tar = spawnTar(tree)
    this.#tarEnd = this.#untilTarEnds()
    const { stdin } = this.#tar
    this.#worker = fork(new URL('worker.ts', import.meta.url), {
      cwd: blobs,
      // Registries of companies have certificates of the companies' own, which the system knows.
      execArgv: ['--use-system-ca', `--max-old-space-size=${heapMebibytes}`],
      env: { PATH: process.env.PATH ?? '', LC_ALL: 'C.UTF-8' },
      stdio: ['ignore', 'ignore', 'pipe', stdin as Writable & { fd: number }, 'ipc'],
    } as SpawnOptions & { execArgv: string[] })
    // The worker's copy is the one whose closing ends the archive.
    stdin?.destroy()
    this.#workerEnd = new Promise((resolve) => this.#worker.once('exit', resolve).once('error', resolve))
    this.#worker.on('message', (reply: Reply) => this.#onReply(reply))
    this.#worker.stderr?.on('data', (bytes: Buffer) => {
      this.#last = bytes.toString('utf8').slice(-2000)
    })
    const gone = () => this.#waiting?.reject(new Error(`The process that fetches images ended: ${this.#last.trim()}`))
    this.#worker.once('error', gone).once('exit', gone)
  }

  resolve(job: Job): Promise<Resolved> {
    return this.#ask({ do: 'resolve', job })
  }

  async fetch(): Promise<void> {
    await this.#ask({ do: 'fetch' })
  }

  merge(): Promise<Inspected> {
    return this.#ask({ do: 'merge' })
  }

  async unpack(): Promise<void> {
    // When tar fails the worker only sees that nobody listens any more.
    const written = this.#ask({ do: 'write' })
    const [sent, { failed }] = await Promise.all([
      written.then(
        () => undefined,
        (error: unknown) => error,
      ),
      this.#tarEnd,
    ])
    if (/No space left/.test(failed ?? '')) throw Object.assign(new Error('no space left'), { code: 'ENOSPC' })
    if (sent instanceof ImageError || (sent !== undefined && failed === undefined)) throw sent
    if (failed !== undefined) throw new Error(`tar: ${failed}`)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#worker.kill('SIGKILL')
    this.#tar.kill('SIGKILL')
    await Promise.all([this.#workerEnd, this.#tarEnd])
  }

  #ask<T>(request: Request): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      this.#waiting = { resolve: resolve as (done: unknown) => void, reject }
      if (this.#worker.exitCode !== null || this.#worker.signalCode !== null || !this.#worker.connected)
        reject(new Error('The process that fetches images has ended'))
      else this.#worker.send(request)
    }).finally(() => {
      this.#waiting = undefined
    })
  }

  #onReply(reply: Reply): void {
    if ('progress' in reply) this.#onProgress(reply.progress)
    else if ('done' in reply) this.#waiting?.resolve(reply.done)
    else {
      const { message, code, system } = reply.failed
      const error = code === undefined ? new Error(message) : new ImageError(code, message)
      this.#waiting?.reject(system === undefined ? error : Object.assign(error, { code: system }))
    }
  }

  async #untilTarEnds(): Promise<{ failed: string | undefined }> {
    this.#tar.stderr?.on('data', (bytes: Buffer) => {
      this.#complaints = (this.#complaints + bytes.toString('utf8')).slice(0, 2000)
    })
    this.#tar.stdin?.on('error', () => {})
    try {
      const [code] = await once(this.#tar, 'close')
      return { failed: code === 0 ? undefined : this.#complaints.trim() || `exit status ${code}` }
    } catch (error) {
      return { failed: (error as Error).message }
    }
  }
}

/**
 * As root, because the files have owners; of an archive that our own worker has written. Should that ever be taken over:
 * GNU tar leaves no folder by `..`, and lays what links lead outside last.
 */
function spawnTar(tree: string): ChildProcess {
  const tar = ['tar', '--extract', '--file=-', `--directory=${tree}`, '--numeric-owner', '--same-owner']
  const attributes = ['--preserve-permissions', '--xattrs', '--xattrs-include=*', '--delay-directory-restore']
  // It ends with the vmhost, also with one that is killed.
  return spawn('setpriv', ['--pdeathsig', 'KILL', '--no-new-privs', ...tar, ...attributes], {
    cwd: '/',
    env: { PATH: process.env.PATH ?? '/usr/bin:/bin', LC_ALL: 'C.UTF-8' },
    stdio: ['pipe', 'ignore', 'pipe'],
  })
}
