import type { Sql } from '../../migrations/connect.ts'
import { noteEvent } from './events.ts'

/**
 * Recorded names: the local user names that people's ssh sends when they type no name. They lead to the lobby.
 * The database lets a name be recorded or a machine's, never both (triggers in migrations/0001_foundation.sql).
 */
const MAX_NAMES = 8
const MAX_NAME_LENGTH = 64

/** Names that lead to the lobby for everybody. */
export const LOBBY_NAMES = ['lobby', 'berth'] as const

/**
 * Never a machine's name: the user names that ssh sends by itself on common systems, those that tools send, and the
 * few that a person would take for the installation itself. `api`, `web` and `test` are for machines.
 */
export const RESERVED_NAMES: ReadonlySet<string> = new Set([
  ...LOBBY_NAMES,
  ...['root', 'admin', 'administrator', 'user', 'guest', 'nobody', 'operator', 'dev', 'developer', 'me', 'owner'],
  ...['ubuntu', 'debian', 'fedora', 'centos', 'rocky', 'almalinux', 'alpine', 'arch', 'opensuse', 'core', 'nixos'],
  ...['ec2-user', 'azureuser', 'opc', 'vagrant', 'pi', 'cloud-user', 'bitnami', 'codespace', 'vscode', 'gitpod'],
  ...['git', 'svn', 'hg', 'sftp', 'scp', 'rsync', 'ssh', 'sshd', 'ftp', 'backup', 'deploy', 'ansible', 'jenkins'],
  ...['runner', 'docker', 'postgres', 'mysql', 'oracle', 'www-data', 'www', 'mail', 'postmaster', 'daemon'],
  ...['gateway', 'localhost'],
])

/** Whether a name may be recorded at all: printable, of bounded length, not the lobby's own. */
export function isRecordable(name: string): boolean {
  return (
    name.length > 0 &&
    name.length <= MAX_NAME_LENGTH &&
    /^[^\s\p{Cc}\p{Cf}\p{Cs}+@:]+$/u.test(name) &&
    !LOBBY_NAMES.some((lobby) => lobby === name)
  )
}

/** The user part of a key's comment, `alice` of `alice@laptop`; undefined when there is none. */
export function nameInComment(comment: string): string | undefined {
  const match = /^([^\s@]+)@[^\s@]+$/.exec(comment.trim())
  return match?.[1] && isRecordable(match[1]) ? match[1] : undefined
}

/**
 * Records a name for an account, or notes that it was used again. An account keeps the eight that were used last.
 * @returns false when the name cannot be recorded, for one because a machine is called so
 */
export async function recordName(sql: Sql, accountId: number, name: string): Promise<boolean> {
  if (!isRecordable(name)) return false
  try {
    await sql.begin(async (tx) => {
      const [known] = await tx`select from lobby_names where name = ${name} and account_id = ${accountId}`
      await tx`
        insert into lobby_names (name, account_id, created_at) values (${name}, ${accountId}, clock_timestamp())
        on conflict (name, account_id) do update set created_at = excluded.created_at`
      if (!known) await noteEvent(tx, { accountId, actor: 'gateway', kind: 'account.name_learned', detail: { name } })
      await tx`
        delete from lobby_names where account_id = ${accountId} and name not in (
          select name from lobby_names where account_id = ${accountId} order by created_at desc, name limit ${MAX_NAMES})`
    })
    return true
  } catch (error) {
    if (isMachineName(error)) return false
    throw error
  }
}

/** The names recorded for an account, the one used last first. */
export async function recordedNames(sql: Sql, accountId: number): Promise<string[]> {
  const rows = await sql<{ name: string }[]>`
    select name from lobby_names where account_id = ${accountId} order by created_at desc, name`
  return rows.map((row) => row.name)
}

function isMachineName(error: unknown): boolean {
  return error instanceof Error && 'constraint_name' in error && error.constraint_name === 'machine_names_pkey'
}
