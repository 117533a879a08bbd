import type { Sql } from '../../../migrations/connect.ts'
import type { Machine } from '../../machines.ts'
import { DEFAULT_PORT } from './routes.ts'

/** What a machine's own host shows: what was chosen, else what its image exposes. */
export function primaryPort({ webPort, observedWebPort }: Pick<Machine, 'webPort' | 'observedWebPort'>): number {
  return webPort ?? observedWebPort ?? DEFAULT_PORT
}

/** What programs in the machine listen on, as its agent reported last; nothing when that is long ago. */
export async function listeningPorts(sql: Sql, machineId: number): Promise<readonly number[]> {
  const rows = await sql<{ ports: unknown }[]>`
    select report -> 'listeningPorts' as ports from machine_reports
    where machine_id = ${machineId} and at > now() - interval '10 minutes'`
  const ports = rows[0]?.ports
  return Array.isArray(ports) ? ports.filter((port) => Number.isInteger(port)).slice(0, 100) : []
}
