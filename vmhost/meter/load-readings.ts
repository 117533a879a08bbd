import { readFileSync } from 'node:fs'

/** What a server's kernel has counted of its machines' hypervisors and taps. Absolute, and as of this moment. */

export type ProcessReading = {
  /** clock ticks after the boot at which it began: with its pid, which process it is */
  readonly startTicks: number
  /** CPU time of all its threads */
  readonly cpuMs: number
  /** that it holds and nobody else does: its guest's memory and its own heap */
  readonly heldBytes: number
}

/** Bytes with their Ethernet headers, as the machine sees it: out is what it sent. */
export type TapReading = { readonly outBytes: number; readonly inBytes: number }

/** USER_HZ, what /proc counts in: 100 a second on x86 and ARM. @see time(7) */
const tickMs = 10

/**
 * Not read ahead and not waited for: the kernel has it at hand, and a thread's detour costs ten times as much.
 * @returns undefined: there is none
 * @see proc_pid_stat(5), fields 14, 15, 22; proc_pid_status(5)
 */
export function readProcess(pid: number): ProcessReading | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1')
    // The second field is the command's name in parentheses, which may itself hold blanks and parentheses.
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
    if (fields[0] === 'Z' || fields[0] === 'X') return undefined
    const status = readFileSync(`/proc/${pid}/status`, 'latin1')
    return {
      startTicks: Number(fields[19]),
      cpuMs: (Number(fields[11]) + Number(fields[12])) * tickMs,
      heldBytes: kibibytesAfter(status, '\nRssAnon:') + kibibytesAfter(status, '\nRssShmem:'),
    }
  } catch {
    return undefined
  }
}

function kibibytesAfter(text: string, name: string): number {
  const at = text.indexOf(name)
  return at < 0 ? 0 : Number.parseInt(text.slice(at + name.length), 10) * 1024
}

/** How long ago a process began. @see proc_uptime(5) */
export function ageMs({ startTicks }: Pick<ProcessReading, 'startTicks'>): number {
  return Number.parseFloat(readFileSync('/proc/uptime', 'latin1')) * 1000 - startTicks * tickMs
}

/**
 * All taps of machines in this network namespace, by machine: one file, however many there are.
 * @see proc_pid_net(5), dev
 */
export function readTaps(path = '/proc/net/dev'): Map<number, TapReading> {
  const found = new Map<number, TapReading>()
  for (const [, id, counts = ''] of readFileSync(path, 'latin1').matchAll(/^\s*vm([1-9]\d{0,9}):(.*)$/gm)) {
    const fields = counts.trim().split(/\s+/)
    // What the host received is what the machine sent.
    found.set(Number(id), { outBytes: Number(fields[0]), inBytes: Number(fields[8]) })
  }
  return found
}
