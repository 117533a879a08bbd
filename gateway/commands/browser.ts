import {
  createSignInLink,
  endAllSessions,
  endSessionOf,
  listSessions,
  type SignedIn,
} from '../accounts/web-sessions.ts'
import { type Completer, defineCommand } from './command.ts'
import { CommandError, usageError } from './error.ts'
import { recordEvent } from './machine-steps.ts'
import { qrRows, qrText } from './qr.ts'
import { table } from './text.ts'
import { sayWhen, shown } from './values.ts'
import { controlUrl } from './web-links.ts'

export const browser = defineCommand({
  name: 'browser',
  group: 'you',
  signsIn: true,
  summary: 'a link that signs a browser in',
  description: 'It is good once, for ten minutes. Whoever has it is you, so it is for your own browsers only.',
  flags: {
    qr: { type: 'boolean', summary: 'as a picture too, for a phone' },
    'sign-out-everywhere': { type: 'boolean', summary: 'sign every browser of yours out instead' },
  },
  examples: ['browser', 'browser --qr'],
  async run({ app, caller }, { flags }) {
    if (flags.qr && flags['sign-out-everywhere']) throw usageError('--qr and --sign-out-everywhere exclude each other')
    const origin = controlUrl(app.settings)
    if (flags['sign-out-everywhere']) {
      const count = await app.sql.begin(async (tx) => {
        const browsers = await endAllSessions(tx, caller.accountId)
        await recordEvent(tx, caller, 'browser.signed_out', null, { browsers })
        return browsers
      })
      const text =
        count === 0
          ? 'no browser was signed in\n'
          : `${count === 1 ? '1 browser is' : `${count} browsers are`} signed out\n`
      return { json: { signed_out: count }, text }
    }
    const url = `${origin}/login/${await createSignInLink(app.sql, caller.accountId)}`
    return {
      json: { url, expires_in_seconds: 600, ...(flags.qr ? { qr: qrRows(url) } : {}) },
      text: (view) => `${flags.qr ? `${qrText(url, view.style.accent('x') !== 'x')}\n` : ''}${url}\n`,
    }
  },
})

const sessionIds: Completer = async ({ app, caller }) =>
  (await listSessions(app.sql, caller.accountId)).map(({ id }) => String(id))

export const browserLs = defineCommand({
  name: 'browser ls',
  aliases: ['browser list'],
  group: 'you',
  summary: 'the browsers that are signed in',
  description: 'When one was last used is known to the hour. After 30 days without use a browser is signed out.',
  async run({ app, caller }) {
    const browsers = await listSessions(app.sql, caller.accountId)
    const isThis = (one: SignedIn) => one.id === caller.sessionId
    return {
      json: {
        browsers: browsers.map((one) => ({
          id: one.id,
          address: one.address,
          signed_in_at: one.createdAt.toISOString(),
          last_used_at: one.lastUsedAt.toISOString(),
          expires_at: one.expiresAt.toISOString(),
          current: isThis(one),
        })),
      },
      text: (view) =>
        browsers.length === 0
          ? 'no browser is signed in; for a link that signs one in: browser\n'
          : table<SignedIn>(
              browsers,
              [
                { title: 'id', value: ({ id }) => String(id), right: true },
                { title: 'from', value: (one) => one.address + (isThis(one) ? ' (this one)' : ''), flexible: true },
                { title: 'signed in', value: (one) => sayWhen(one.createdAt) },
                { title: 'used', value: (one) => sayWhen(one.lastUsedAt), optional: 1 },
                { title: 'ends', value: (one) => sayWhen(one.expiresAt), optional: 2 },
              ],
              view,
            ),
    }
  },
})

export const browserRm = defineCommand({
  name: 'browser rm',
  aliases: ['browser remove', 'browser sign-out'],
  group: 'you',
  summary: 'sign one browser out, on the pages of machines too',
  arguments: { id: { label: 'ID', complete: sessionIds } },
  examples: ['browser rm 3'],
  async run({ app, caller }, { args }) {
    const id = /^\d{1,9}$/.test(args.id) ? Number(args.id) : 0
    await app.sql.begin(async (tx) => {
      if (!(await endSessionOf(tx, caller.accountId, id))) {
        throw new CommandError('browser.not_found', 3, `no browser ${shown(args.id)} is signed in`, {
          wayOn: 'browser ls shows those that are',
        })
      }
      await recordEvent(tx, caller, 'browser.signed_out', null, { browser: id })
    })
    return { json: { signed_out: 1, id }, text: `browser ${id} is signed out\n` }
  },
})
