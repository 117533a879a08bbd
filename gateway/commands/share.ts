import type { Db } from '../../migrations/connect.ts'
import { isEmail } from '../accounts/people.ts'
import {
  addLink,
  addShare,
  listShares,
  removeLink,
  removeShare,
  type Share,
  ShareError,
  type ShareLink,
} from '../accounts/shares.ts'
import { listDomains } from '../domains/rows.ts'
import { primaryPort } from '../https/machines/ports.ts'
import type { Machine } from '../machines.ts'
import { type Context, defineCommand } from './command.ts'
import { machineNames } from './complete.ts'
import { CommandError, usageError } from './error.ts'
import { httpsUrl } from './machine-document.ts'
import { reachable, recordEvent } from './machine-steps.ts'
import { qrRows, qrText } from './qr.ts'
import { fitted, harmless, table, type View } from './text.ts'
import { sayWhen, shown } from './values.ts'
import { controlUrl, visibility } from './web-links.ts'

const MESSAGE_MOST = 1000
const name = { label: 'NAME', complete: machineNames } as const
const QR = { qr: { type: 'boolean', summary: 'as a picture too, for a phone' } } as const

export const shareShow = defineCommand({
  name: 'share show',
  aliases: ['share ls', 'share list'],
  group: 'web',
  onMachines: true,
  summary: 'who may see what a machine shows',
  flags: QR,
  arguments: { name },
  async run(context, { flags, args }) {
    const machine = await own(context, args.name)
    const { app } = context
    const { shares, links } = await listShares(app.sql, machine.id)
    const domains = (await listDomains(app.sql, [machine.id])).map(({ domain, wildcard }) => ({ domain, wildcard }))
    const url = httpsUrl(app.settings, machine.name)
    return {
      json: {
        vm_name: machine.name,
        status: visibility(machine.webPublic),
        port: primaryPort(machine),
        url,
        users: shares.map(({ email, createdAt, acceptedAt }) => ({
          email,
          status: acceptedAt === null ? 'pending' : 'active',
          invited_at: createdAt.toISOString(),
          share_level: 'web',
        })),
        links: links.map(linkDocument),
        teams: [],
        domains,
        ...(flags.qr ? { qr: qrRows(url) } : {}),
      },
      text: (view) => {
        const open = machine.webPublic ? 'open to everybody' : 'private: you, and whom you let in'
        const also = domains.map(({ domain, wildcard }) => `also at ${domain}${wildcard ? ` and *.${domain}` : ''}\n`)
        const head = `${url} shows port ${primaryPort(machine)}, ${open}\n${also.join('')}`
        const people = shares.length
          ? `\n${table<Share>(
              shares,
              [
                { title: 'address', value: (one) => harmless(one.email), flexible: true },
                { title: 'shared', value: (one) => sayWhen(one.createdAt), optional: 1 },
                { title: 'accepted', value: (one) => (one.acceptedAt ? sayWhen(one.acceptedAt) : 'pending') },
              ],
              view,
            )}`
          : ''
        const doors = links.length
          ? `\n${table<ShareLink>(
              links,
              [
                { title: 'link', value: (one) => String(one.id), right: true },
                { title: 'used', value: (one) => String(one.used), right: true },
                { title: 'left', value: (one) => (one.usesLeft === null ? 'any' : String(one.usesLeft)), right: true },
                { title: 'ends', value: (one) => (one.expiresAt ? sayWhen(one.expiresAt) : 'when removed') },
              ],
              view,
            )}`
          : ''
        return head + people + doors + picture(url, flags.qr, view)
      },
    }
  },
})

export const shareAdd = defineCommand({
  name: 'share add',
  group: 'web',
  onMachines: true,
  summary: 'let the reader of an address see what a machine shows',
  description: 'They get a mail with a link, and sign in with it or with a code; no account is needed.',
  flags: { message: { type: 'string', value: 'TEXT', summary: 'a few words for the mail' }, ...QR },
  arguments: { name, email: { label: 'EMAIL' } },
  examples: ['share add demo ada@example.com', "share add demo ada@example.com --message 'the new page'"],
  async run(context, { flags, args }) {
    const machine = await own(context, args.name)
    const { app, caller } = context
    const email = emailOf(args.email)
    const message = (flags.message ?? '').replaceAll(/[\p{Cc}\p{Cf}]+/gu, ' ').trim()
    if (message.length > MESSAGE_MOST) throw usageError(`--message has at most ${MESSAGE_MOST} characters`)
    const [account] = await app.sql<{ email: string | null; proved: boolean }[]>`
      select email, email_proved_at is not null as proved from accounts where id = ${caller.accountId}`
    // An address that nobody proved would let anybody write in another's name.
    const from = account?.proved && account.email ? account.email : `somebody at ${app.settings.domain}`
    const origin = controlUrl(app.settings)
    const invitation = (token: string) => ({
      subject: `${machine.name} is shared with you`,
      body: [
        `${from} lets you see what ${machine.name} shows at ${httpsUrl(app.settings, machine.name)}`,
        ...(message === '' ? [] : ['', message]),
        '',
        `To accept, open ${origin}/invitation/${token}`,
        '',
        'If you do not know what this is, nothing needs to be done.',
        '',
      ].join('\n'),
    })
    const share = { machineId: machine.id, accountId: caller.accountId, email }
    const record = (tx: Db) => recordEvent(tx, caller, 'share.added', machine, { email })
    const { accepted } = await told(() => addShare(app.sql, share, invitation, record))
    const state = accepted
      ? `${email} sees ${machine.name} already\n`
      : app.settings.smtp === undefined
        ? `${email} may see ${machine.name}; no mail leaves this server: the invitation is in mail, for the operator to pass on\n`
        : `${email} may see ${machine.name}; an invitation is on its way\n`
    const url = httpsUrl(app.settings, machine.name)
    const isMailed = !accepted && app.settings.smtp !== undefined
    return {
      json: {
        status: 'success',
        vm_name: machine.name,
        shared_with: email,
        url,
        message: isMailed ? 'Invitation sent' : 'Share created',
        ...(flags.qr ? { qr: qrRows(url) } : {}),
      },
      text: (view) => fitted(state, view).join('\n') + picture(url, flags.qr, view),
    }
  },
})

export const shareRemove = defineCommand({
  name: 'share remove',
  aliases: ['share rm'],
  group: 'web',
  onMachines: true,
  summary: 'take that back; whoever is connected is cut off',
  arguments: {
    name,
    email: { label: 'EMAIL' },
  },
  async run(context, { args }) {
    const machine = await own(context, args.name)
    const email = args.email.trim().toLowerCase()
    await context.app.sql.begin(async (tx) => {
      if (!(await removeShare(tx, machine.id, email))) {
        throw new CommandError('share.not_found', 3, `${machine.name} is not shared with ${shown(email)}`, {
          wayOn: `share show ${machine.name}`,
        })
      }
      await recordEvent(tx, context.caller, 'share.removed', machine, { email })
    })
    const message = `${email} sees ${machine.name} no more`
    return { json: { status: 'success', vm_name: machine.name, message }, text: `${message}\n` }
  },
})

export const shareAddLink = defineCommand({
  name: 'share add-link',
  group: 'web',
  onMachines: true,
  summary: 'a link that lets whoever opens it see what a machine shows',
  description: 'It is shown once; here only its hash is kept.',
  flags: {
    expires: {
      type: 'duration',
      aliases: ['exp'],
      value: '7d',
      summary: 'ends the link and all access by it; never unless given',
    },
    uses: { type: 'integer', min: 1, max: 10_000, summary: 'how many browsers it lets in; any number unless given' },
    ...QR,
  },
  arguments: { name },
  examples: ['share add-link demo', 'share add-link demo --expires 7d --uses 1'],
  async run(context, { flags, args }) {
    const machine = await own(context, args.name)
    const { app, caller } = context
    const { token, link } = await told(() =>
      app.sql.begin(async (tx) => {
        const made = await addLink(tx, { machineId: machine.id, uses: flags.uses, expiresInMs: flags.expires })
        const { id, usesLeft: uses } = made.link
        await recordEvent(tx, caller, 'share.link_added', machine, { id, uses })
        return made
      }),
    )
    const url = `${httpsUrl(app.settings, machine.name)}/__berth/link/${token}`
    return {
      json: {
        status: 'success',
        vm_name: machine.name,
        url,
        ...linkDocument(link),
        ...(flags.qr ? { qr: qrRows(url) } : {}),
      },
      text: (view) =>
        `${url}\n${view.style.dim(`to take it back: share remove-link ${machine.name} ${link.id}`)}\n${picture(url, flags.qr, view)}`,
    }
  },
})

export const shareRemoveLink = defineCommand({
  name: 'share remove-link',
  aliases: ['share rm-link'],
  group: 'web',
  onMachines: true,
  summary: 'take a link back; whoever came by it is cut off',
  arguments: { name, id: { label: 'ID' } },
  async run(context, { args }) {
    const machine = await own(context, args.name)
    const id = /^\d{1,9}$/.test(args.id) ? Number(args.id) : 0
    await context.app.sql.begin(async (tx) => {
      if (!(await removeLink(tx, machine.id, id))) {
        throw new CommandError('share.not_found', 3, `${machine.name} has no link ${shown(args.id)}`, {
          wayOn: `share show ${machine.name}`,
        })
      }
      await recordEvent(tx, context.caller, 'share.link_removed', machine, { id })
    })
    const message = `link ${id} opens nothing any more`
    return { json: { status: 'success', vm_name: machine.name, message }, text: `${message}\n` }
  },
})

export const shareSetPublic = defineCommand({
  name: 'share set-public',
  group: 'web',
  onMachines: true,
  summary: 'open what https://NAME shows to everybody',
  description: 'Its primary port alone; the others stay private.',
  arguments: { name },
  run: (context, { args }) => setPublic(context, args.name, true),
})

export const shareSetPrivate = defineCommand({
  name: 'share set-private',
  group: 'web',
  onMachines: true,
  summary: 'close it again; whoever is connected is cut off',
  arguments: { name },
  run: (context, { args }) => setPublic(context, args.name, false),
})

async function setPublic(context: Context, typed: string, isPublic: boolean) {
  const machine = await own(context, typed)
  const { app, caller } = context
  await app.sql.begin(async (tx) => {
    await tx`update machines set web_public = ${isPublic} where id = ${machine.id}`
    await recordEvent(tx, caller, isPublic ? 'share.public' : 'share.private', machine)
  })
  const url = httpsUrl(app.settings, machine.name)
  return {
    json: {
      status: 'updated',
      vm_name: machine.name,
      port: primaryPort(machine),
      share: visibility(isPublic),
      https_url: url,
    },
    text: isPublic ? `everybody may see ${url}\n` : `${url} is private\n`,
  }
}

/** @throws CommandError also where HTTPS is off: nothing could be shown to anybody */
async function own({ app, caller }: Context, typed: string): Promise<Machine> {
  controlUrl(app.settings)
  return await reachable(app, caller, typed)
}

function emailOf(typed: string): string {
  const email = typed.trim().toLowerCase()
  if (isEmail(email)) return email
  throw usageError(`${shown(typed)} is no e-mail address`, 'share add demo ada@example.com')
}

/** `token` is what `share remove-link` takes, and no secret: of that only a hash is kept. */
function linkDocument({ id, used, usesLeft, createdAt, expiresAt, lastUsedAt }: ShareLink) {
  return {
    token: String(id),
    use_count: used,
    uses_left: usesLeft,
    created_at: createdAt.toISOString(),
    last_used_at: lastUsedAt?.toISOString() ?? null,
    expires_at: expiresAt?.toISOString() ?? null,
  }
}

function picture(url: string, isWanted: boolean | undefined, view: View): string {
  return isWanted ? `\n${qrText(url, view.style.accent('x') !== 'x')}` : ''
}

async function told<T>(step: () => Promise<T>): Promise<T> {
  try {
    return await step()
  } catch (error) {
    if (error instanceof ShareError) throw new CommandError(error.code, 5, error.message, { cause: error })
    throw error
  }
}
