import type { DoctorFinding } from '../../migrations/schema.ts'
import type { Figures } from './keeper.ts'
import { isAtLeast } from './policy.ts'

const GiB = 2 ** 30

/** A server's memory as its operator reads it. */
export function describeMemory({ host, level, usedBytes, reclaimedBytes }: Figures): DoctorFinding {
  const say = (bytes: number) => (bytes / GiB).toFixed(1)
  const left = `${say(host.availableBytes)} of ${say(host.totalBytes)} GiB of memory are available`
  const held = `machines hold ${say(usedBytes)} GiB${reclaimedBytes > 0 ? ` and have given back ${say(reclaimedBytes)}` : ''}`
  if (isAtLeast(level, 'short')) {
    const message = `The server is short of memory: ${left}; ${held}. Machines idle longest sleep where that is not enough`
    const remedy = 'Stop machines, promise less (host overcommit), or give the server more memory'
    return { check: 'memory', ok: false, message, remedy }
  }
  const without = host.stall
    ? ''
    : '. Its kernel does not measure who waits for memory (PSI): what is available is all that tells'
  return { check: 'memory', ok: true, message: `${left}; ${held}${without}` }
}
