import type { BigIntStats } from 'node:fs'
import { readdir, readFile, stat, writeFile } from 'node:fs/promises'
import { setPriority } from 'node:os'
import { setTimeout as sleep } from 'node:timers/promises'
import { HypervisorError } from './driver.ts'

/**
 * A process that stays the same one: a pid alone may have been given to another process since it was read, the pid
 * together with its start time (clock ticks since boot, field 22 of /proc/PID/stat) not. @see proc_pid_stat(5)
 */
export type ProcessIdentity = { readonly pid: number; readonly startTicks: number }

/** From SIGKILL to the end of a process. */
export const killLimitMs = 10_000
const lookAgainMs = 20
/** Guests go before Postgres and the gateway when the kernel must kill somebody. */
const oomScoreAdjustment = 300

/** @returns undefined when there is no such process, or only the zombie of one, none of whose threads is left */
export async function identify(pid: number): Promise<ProcessIdentity | undefined> {
  const text = await readFile(`/proc/${pid}/stat`, 'latin1').catch(unlessGone)
  if (text === undefined) return undefined
  // The second field is the command's name in parentheses, which may itself hold blanks and parentheses.
  const fields = text.slice(text.lastIndexOf(')') + 2).split(' ')
  // Its first thread may have ended before the others, which have its files and memory until they have too.
  if ((fields[0] === 'Z' || fields[0] === 'X') && Number(fields[17]) <= 1) return undefined
  return { pid, startTicks: Number(fields[19]) }
}

/** For what went away while it was looked at. What cannot be read for another reason may well be there. */
function unlessGone(error: NodeJS.ErrnoException): undefined {
  if (error.code === 'ENOENT' || error.code === 'ESRCH') return undefined
  throw error
}

export async function isAlive(one: ProcessIdentity): Promise<boolean> {
  return (await identify(one.pid))?.startTicks === one.startTicks
}

/** Sends a signal unless the process has gone meanwhile. */
export async function signalProcess(one: ProcessIdentity, signal: NodeJS.Signals): Promise<void> {
  if (!(await isAlive(one))) return
  try {
    process.kill(one.pid, signal)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error
  }
}

/** @returns whether it was gone within `limitMs` */
export async function awaitExit(one: ProcessIdentity, limitMs: number): Promise<boolean> {
  const deadline = Date.now() + limitMs
  while (await isAlive(one)) {
    if (Date.now() > deadline) return false
    await sleep(lookAgainMs)
  }
  return true
}

/** Ends a process by SIGKILL and returns when it is gone. @throws HypervisorError `hypervisor.timeout` */
export async function endProcess(one: ProcessIdentity): Promise<void> {
  await signalProcess(one, 'SIGKILL')
  if (await awaitExit(one, killLimitMs)) return
  throw new HypervisorError('hypervisor.timeout', `Process ${one.pid} does not end, even by SIGKILL`)
}

/** @see proc_pid_oom_score_adj(5) */
export async function yieldToOom(pid: number): Promise<void> {
  await writeFile(`/proc/${pid}/oom_score_adj`, String(oomScoreAdjustment)).catch(() => {})
}

/**
 * Finds processes by what they cannot pretend to another machine's vmhost: their uid, and a working directory that
 * is this very directory (compared by device and inode, because another mount namespace may show it elsewhere).
 */
export async function findProcesses(uid: number, directory: string): Promise<ProcessIdentity[]> {
  const wanted = await stat(directory, { bigint: true }).catch(unlessGone)
  if (!wanted) return []
  const found: ProcessIdentity[] = []
  for (const pid of (await lookAtAll()).get(uid) ?? []) {
    const cwd = await workingDirectory(pid)
    if (cwd?.dev !== wanted.dev || cwd.ino !== wanted.ino) continue
    const identity = await identify(pid)
    if (identity) found.push(identity)
  }
  return found
}

/** Of any thread that has one still: the first has none when it has ended before the others. */
async function workingDirectory(pid: number): Promise<BigIntStats | undefined> {
  const own = await stat(`/proc/${pid}/cwd/`, { bigint: true }).catch(unlessGone)
  if (own) return own
  for (const thread of (await readdir(`/proc/${pid}/task`).catch(unlessGone)) ?? []) {
    const cwd = await stat(`/proc/${pid}/task/${thread}/cwd/`, { bigint: true }).catch(unlessGone)
    if (cwd) return cwd
  }
  return undefined
}

/** Pids by real uid. */
type Everybody = ReadonlyMap<number, readonly number[]>

let looking: Promise<Everybody> | undefined
let nextLook: Promise<Everybody> | undefined

/** Looks at all processes, once for all who ask before it begins: a vmhost that starts asks for a thousand machines. */
function lookAtAll(): Promise<Everybody> {
  nextLook ??= (looking ?? Promise.resolve()).then(() => {
    const look = readEverybody()
    nextLook = undefined
    looking = look.catch(() => new Map<number, number[]>())
    return look
  })
  return nextLook
}

async function readEverybody(): Promise<Everybody> {
  const pids = (await readdir('/proc')).filter((name) => /^[1-9][0-9]*$/.test(name)).map(Number)
  const everybody = new Map<number, number[]>()
  await Promise.all(
    pids.map(async (pid) => {
      // The directory's owner is the effective uid of the process (root's when it is not dumpable): Uid: is the truth.
      const status = (await readFile(`/proc/${pid}/status`, 'latin1').catch(unlessGone)) ?? ''
      const uid = Number(/^Uid:\t(\d+)\t/m.exec(status)?.[1] ?? Number.NaN)
      const others = everybody.get(uid)
      if (others) others.push(pid)
      else everybody.set(uid, [pid])
    }),
  )
  return everybody
}

/**
 * Sets the nice value of a process: of every thread, since Linux keeps it per thread, and of its session's scheduling
 * group where there are such (a session is always one process here). @see sched(7), "The autogroup feature"
 */
export async function setNice(pid: number, nice: number): Promise<void> {
  await writeFile(`/proc/${pid}/autogroup`, String(nice)).catch(() => {})
  for (const thread of await readdir(`/proc/${pid}/task`).catch(() => [])) {
    try {
      setPriority(Number(thread), nice)
    } catch {
      // The thread has ended.
    }
  }
}
