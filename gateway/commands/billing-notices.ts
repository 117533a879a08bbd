import { markRead, type Notice, readNotices } from '../accounts/notices.ts'
import type { Completer } from './command.ts'
import { defineCommand } from './command.ts'
import { CommandError, usageError } from './error.ts'
import { harmless, table, type View, wrap } from './text.ts'
import { sayWhen, shown } from './values.ts'

const noticeIds: Completer = async ({ app, caller }) =>
  (await readNotices(app.sql, caller.accountId)).map(({ id }) => String(id))

export const billingNotices = defineCommand({
  name: 'billing notices',
  group: 'you',
  summary: 'what you were told: plans and rates to come, limits, invoices',
  description:
    'Each is mailed too, to an account that has an address. Those that nobody has read yet are named where the lobby begins and on the pages in the browser, until --read says that they were.',
  flags: { read: { type: 'boolean', summary: 'they were read, ID and those before it or all: name them no more' } },
  arguments: { id: { label: 'ID', optional: true, complete: noticeIds } },
  examples: ['billing notices', 'billing notices --read'],
  async run({ app, caller }, { flags, args }) {
    const { sql } = app
    const before = await readNotices(sql, caller.accountId)
    const one = args.id === undefined ? undefined : noticeOf(before, args.id)
    const upTo = one?.id ?? before[0]?.id
    // Not what came since this was shown.
    const isMarked = flags.read === true && upTo !== undefined && (await markRead(sql, caller.accountId, upTo)) > 0
    const after = isMarked ? await readNotices(sql, caller.accountId) : before
    const unread = after.filter(({ readAt }) => readAt === null)
    // Read or not as it was when it was asked for: that is what it is about.
    const fresh = one ? [one] : before.filter(({ readAt }) => readAt === null)
    const known = one ? [] : before.filter(({ readAt }) => readAt !== null)
    return {
      json: { unread: unread.length, notices: (one ? after.filter(({ id }) => id === one.id) : after).map(document) },
      text: (view) => {
        if (before.length === 0) return 'you were told nothing yet\n'
        const way = unread.length > 0 ? `${view.style.dim('to be told of them no more: billing notices --read')}\n` : ''
        return [...fresh.map((notice) => whole(notice, view)), ...(known.length > 0 ? [list(known, view)] : []), way]
          .filter((part) => part !== '')
          .join('\n')
      },
    }
  },
})

/** @throws CommandError 'notice.not_found' (3), usage */
function noticeOf(notices: readonly Notice[], typed: string): Notice {
  if (!/^\d{1,9}$/.test(typed)) throw usageError(`${shown(typed)} is no number of a notice`, 'billing notices')
  const found = notices.find(({ id }) => id === Number(typed))
  if (found) return found
  throw new CommandError('notice.not_found', 3, `no notice ${typed}`, { wayOn: 'billing notices lists them' })
}

function document({ id, subject, body, at, readAt }: Notice) {
  return { id, subject, body, at: at.toISOString(), read_at: readAt?.toISOString() ?? null }
}

function whole({ id, subject, body, at }: Notice, { style, columns }: View): string {
  const head = wrap(harmless(subject), columns).map(style.bold).join('\n')
  return `${style.dim(`${id}, ${sayWhen(at)}`)}\n${head}\n\n${wrap(harmless(body).trimEnd(), columns).join('\n')}\n`
}

function list(notices: readonly Notice[], view: View): string {
  return table(
    notices,
    [
      { title: 'id', value: ({ id }) => String(id), right: true },
      { title: 'told', value: ({ at }) => sayWhen(at) },
      { title: 'what', value: ({ subject }) => harmless(subject), flexible: true },
    ],
    view,
  )
}
