/** When a machine's hypervisors were there, seen from outside of Berth: by their processes. */
import { readFileSync } from 'node:fs'
import { connect } from 'node:net'

export type Life = {
  readonly pid: number
  /** milliseconds since 1970 */
  readonly startedAt: number
  /** when its guest was there at the latest, for one that goes on is read from the disk first */
  readyAt: number | undefined
  endedAt: number | undefined
  /** since when it only stood still, for its memory was saved: from here on its owner need not pay */
  savedAt: number | undefined
}

const lookMs = 50
/** USER_HZ. @see time(7) */
const tickMs = 10

export class Lives implements Disposable {
  readonly all: Life[] = []
  readonly #find: () => readonly number[]
  readonly #timer: NodeJS.Timeout
  #looks = 0

  /** @param find pids of the hypervisors that are there; takes a while */
  constructor(find: () => readonly number[]) {
    this.#find = find
    this.#timer = setInterval(() => (this.#looks++ % 10 === 0 ? this.look() : this.#noteEnds()), lookMs)
    this.look()
  }

  look(): void {
    this.#noteEnds()
    for (const pid of this.#find()) {
      const startedAt = startOf(pid)
      if (startedAt === undefined || this.all.some((life) => life.pid === pid && life.endedAt === undefined)) continue
      this.all.push({ pid, startedAt, readyAt: undefined, endedAt: undefined, savedAt: undefined })
    }
  }

  #noteEnds(): void {
    for (const life of this.all) if (life.endedAt === undefined && !startOf(life.pid)) life.endedAt = Date.now()
  }

  get last(): Life | undefined {
    return this.all.at(-1)
  }

  [Symbol.dispose](): void {
    clearInterval(this.#timer)
  }
}

/** Whether this process has a guest, and which: whoever asks a hypervisor for its version has none. */
export function isOf(pid: number, machineId: number): boolean {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'latin1').includes(`\0guest=vm${machineId},`)
  } catch {
    return false
  }
}

/**
 * Resolves when the guest of this QEMU has switched itself off: it is kept until somebody has seen why. To be asked while
 * there is no vmhost, for QEMU listens to one at a time.
 * @see https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html
 */
export async function switchedOff(pid: number, limitMs: number): Promise<void> {
  const socket = connect(`/proc/${pid}/cwd/run/qmp.sock`)
  const tooLate = setTimeout(() => socket.destroy(new Error(`not switched off within ${limitMs} ms`)), limitMs)
  socket.setEncoding('utf8')
  socket.write('{"execute":"qmp_capabilities"}\n{"execute":"query-status"}\n')
  let said = ''
  try {
    for await (const chunk of socket) {
      said += chunk
      if (/"status": *"shutdown"|"event": *"SHUTDOWN"/.test(said)) return
    }
    throw new Error(`QEMU ended: ${said}`)
  } finally {
    clearTimeout(tooLate)
    socket.destroy()
  }
}

/** @returns undefined for one that has ended, or is about to be forgotten. @see proc_pid_stat(5), fields 3 and 22 */
function startOf(pid: number): number | undefined {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'latin1')
    const fields = text.slice(text.lastIndexOf(')') + 2).split(' ')
    if (fields[0] === 'Z' || fields[0] === 'X') return undefined
    const uptimeMs = Number.parseFloat(readFileSync('/proc/uptime', 'latin1')) * 1000
    return Date.now() - uptimeMs + Number(fields[19]) * tickMs
  } catch {
    return undefined
  }
}
