import { execFileSync } from 'node:child_process'
import { postmasterPid } from '../../migrations/embedded.ts'
import { cpuSeconds } from './ssh-lab.ts'

/** CPU that the processes which an embedded server has now have taken so far, in seconds. */
export function backendsSeconds(dataDirectory: string): number {
  const pids = execFileSync('ps', ['-o', 'pid=', '--ppid', String(postmasterPid(dataDirectory))], { encoding: 'utf8' })
  return pids
    .split('\n')
    .filter(Boolean)
    .reduce((sum, pid) => sum + cpuSeconds(Number(pid)), 0)
}
