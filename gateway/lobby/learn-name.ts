import { recordName } from '../accounts/names.ts'
import type { App, Caller } from '../app.ts'
import { nearest } from '../commands/nearest.ts'

/**
 * Records the name under which somebody used the lobby on a terminal, so that `ssh host COMMAND`, which sends the same
 * name by itself, leads there too. Never throws: the person is on their way out, and the next visit records it as well.
 *
 * A slip of the fingers must not become such a name, or the next one of its kind, meant for a machine, would run its
 * command here. So what is near to the name of a machine that this account has, had or has in the trash is not learned.
 */
export async function learnName({ sql, log }: App, { accountId, sshName }: Caller): Promise<void> {
  try {
    // Every machine that was: whoever forgot that `demo` is gone meant a machine when they typed it.
    const machines = await sql<{ name: string }[]>`select distinct name from machines where account_id = ${accountId}`
    const isSlip = nearest(
      sshName,
      machines.map((machine) => machine.name),
    )
    if (isSlip === undefined) await recordName(sql, accountId, sshName)
  } catch (error) {
    log.warn({ err: error, account: accountId }, 'a name was not recorded')
  }
}
