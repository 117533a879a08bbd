import type { World } from './world.ts'

export type MachineRow = {
  id: number
  name: string
  cpus: number
  memory_bytes: number
  disk_bytes: number
  tags: string[]
  comment: string
  env: Record<string, string>
  command: string
  sleep_after_seconds: number | null
  sleep_never: boolean
  hold_until: Date | null
  setup_state: string | null
  setup_exit_status: number | null
  desired_state: string
  observed_state: string
  desired_boot: number
  observed_boot: number
  address: string | null
}

/** The row behind a name in use. */
export async function machineRow(world: World, name: string): Promise<MachineRow | undefined> {
  const rows = await world.gateway.sql<MachineRow[]>`
    select machines.*, host(address) as address from machine_names
    join machines on machines.id = machine_names.machine_id left join addresses on addresses.machine_id = machines.id
    where machine_names.name = ${name}`
  return rows[0]
}

export async function addressesInUse(world: World): Promise<number> {
  return (await world.gateway.sql`select from addresses`).length
}
