/** What the commands answer that the machine's page is made of. Sizes in bytes, times in ISO 8601. */
import type { Machine } from '../../api/live.ts'

/** As `ls NAME --json` has it: what is pushed of each machine but for its number, and more. */
export type MachineDocument = Omit<Machine, 'id'> & {
  ssh_host: string
  login_user: string | null
  setup?: { state: string; exit_status: number | null; ended_at: string | null }
  cost_this_month_micros?: number
}

export type WhyDocument = {
  status: string
  awake_because: string | null
  idle_since: string | null
  asleep_because: string | null
  asleep_since: string | null
  saved_bytes: number | null
  sleep_after_seconds: number | null
  sleep_after_is_default: boolean
  hold_until: string | null
  last_activity: { at: string; what: 'ssh' | 'https' | 'websocket' } | null
  reason?: string
}

export type TrashedDocument = {
  vm_name: string
  image: string
  disk_capacity_bytes: number
  trashed_at: string
  goes_at: string
}

export type ShareDocument = {
  status: 'public' | 'private'
  port: number
  url: string
  users: { email: string; status: 'pending' | 'active'; invited_at: string }[]
  links: LinkDocument[]
}

export type LinkDocument = {
  token: string
  use_count: number
  uses_left: number | null
  created_at: string
  last_used_at: string | null
  expires_at: string | null
}

/** What is said of a link once, when it is made. */
export type NewLinkDocument = LinkDocument & { url: string; qr?: string[] }

export type DnsRecord = { name: string; type: string; value: string }

export type DomainDocument = {
  domain: string
  wildcard: boolean
  https_url: string
  added_at: string
  certificate: { expires_at: string | null; failures: number; problem: string | null; next_try_at: string | null }
}

export type CheckpointDocument = {
  id: number
  comment: string
  state: 'waiting' | 'kept' | 'failed'
  reason?: string
  with_memory: boolean | null
  created_at: string
  taken_at: string | null
  disk_bytes: number | null
  memory_bytes: number | null
  held_bytes: number | null
  still_ms: number | null
}

export type ResizeDocument = {
  allocated_cpus: number
  memory_capacity_bytes: number
  disk_capacity_bytes: number
  at_next_start: ('cpu' | 'memory')[]
  disk?: 'grown' | 'growing' | 'when it is awake' | 'at its next start'
}
