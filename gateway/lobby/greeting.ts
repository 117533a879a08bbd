import { readNotices } from '../accounts/notices.ts'
import type { App, Caller } from '../app.ts'
import { sshLine } from '../commands/machine-document.ts'
import { harmless, type View, wrap } from '../commands/text.ts'

/** What stands above the first prompt: for a first visit the one thing to type, later where one left off, and what is news. */
export async function greeting(app: App, caller: Caller, view: View): Promise<string> {
  return `${await machinesLine(app, caller, view)}${await noticesLine(app, caller, view)}`
}

/** Not everybody has an address for mail. */
async function noticesLine(app: App, caller: Caller, view: View): Promise<string> {
  const notices = await readNotices(app.sql, caller.accountId).catch(() => [])
  const [newest, ...others] = notices.filter(({ readAt }) => readAt === null)
  if (!newest) return ''
  const more = others.length === 0 ? '' : ` and ${others.length} more`
  const { style } = view
  return say(
    view,
    `${style.bold('You are told:')} ${harmless(newest.subject)}${more}. ${style.dim('Read: billing notices')}`,
  )
}

async function machinesLine(app: App, caller: Caller, view: View): Promise<string> {
  const { style } = view
  const machines = await app.machines.list(caller).catch(() => [])
  const [only] = machines
  if (!only) {
    return say(view, `${style.bold('Berth')}. You have no machine yet; type ${style.accent('new')} and press Enter.`)
  }
  if (machines.length === 1) {
    return say(
      view,
      `${style.bold(only.name)} is ${only.observedState}. From your own shell: ${sshLine(app.settings, only.name)}`,
    )
  }
  const running = machines.filter((machine) => machine.observedState === 'running').length
  return say(
    view,
    `${machines.length} machines, ${running} of them running. ${style.dim('ls lists them, help the rest.')}`,
  )
}

function say(view: View, text: string): string {
  return `${wrap(text, Math.max(20, view.columns)).join('\n')}\n`
}
