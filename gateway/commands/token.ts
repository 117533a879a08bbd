import { createToken, keysOfToken, listTokens, removeToken, type Token, TokenError } from '../accounts/tokens.ts'
import type { TokenScope } from '../app.ts'
import { type Context, defineCommand } from './command.ts'
import { machineNames } from './complete.ts'
import { CommandError, usageError } from './error.ts'
import { validTags } from './labels.ts'
import { firstWords } from './lookup.ts'
import { httpsUrl } from './machine-document.ts'
import { reachable, recordEvent } from './machine-steps.ts'
import { nearest } from './nearest.ts'
import { isNamed } from './permission.ts'
import { TABLE } from './table.ts'
import { harmless, table } from './text.ts'
import { sayList, sayWhen, shown } from './values.ts'
import { controlUrl } from './web-links.ts'

const DAY_MS = 86_400_000
const DEFAULT_MS = 30 * DAY_MS
const LONGEST_MS = 400 * DAY_MS
const LABEL_MOST = 100

type Asked = {
  label?: string | undefined
  cmds?: string | undefined
  machine?: string | undefined
  tag?: string | undefined
  expires?: number | undefined
}

export const tokenNew = defineCommand({
  name: 'token new',
  group: 'web',
  summary: "a token with which programs see your machines' pages and run commands",
  description: [
    'It is shown once; here only its hash is kept. Send it as Authorization: Bearer, as X-Berth-Authorization: Bearer where the program behind wants Authorization for itself, or as the password of git and curl -u.',
    'POST /exec runs commands with it (doc api): those of --cmds, or any but those that sign a person in (browser, mail). What it makes with token new ends with it.',
  ].join('\n\n'),
  flags: {
    cmds: { type: 'string', value: 'A,B', summary: 'the commands it may run, or none: for pages alone' },
    machine: { type: 'string', value: 'NAME', complete: machineNames, summary: 'for that machine alone' },
    tag: { type: 'string', summary: 'for your machines with that tag' },
    expires: { type: 'duration', aliases: ['exp'], value: '30d', summary: 'how long it is good; 30d unless given' },
    label: { type: 'string', summary: 'how lists call it' },
  },
  examples: ['token new --machine demo --label ci', "token new --cmds 'ls,ssh,share show' --expires 7d"],
  run: (context, { flags }) => newToken(context, flags),
})

export const tokenLs = defineCommand({
  name: 'token ls',
  aliases: ['token list'],
  group: 'web',
  summary: 'the tokens that are good',
  async run({ app, caller }) {
    const tokens = await listTokens(app.sql, caller.accountId)
    return {
      json: {
        tokens: tokens.map((one) => ({
          id: one.id,
          label: one.label,
          machine: one.machineName,
          tag: one.tag,
          cmds: one.commands,
          created_at: one.createdAt.toISOString(),
          last_used_at: one.lastUsedAt?.toISOString() ?? null,
          expires_at: one.expiresAt.toISOString(),
        })),
      },
      text: (view) =>
        tokens.length === 0
          ? 'no token; to make one: token new\n'
          : table<Token>(
              tokens,
              [
                { title: 'id', value: (one) => String(one.id), right: true },
                { title: 'label', value: (one) => harmless(one.label), flexible: true },
                { title: 'for', value: opens },
                { title: 'runs', value: runs, flexible: true, optional: 2 },
                { title: 'used', value: (one) => (one.lastUsedAt ? sayWhen(one.lastUsedAt) : 'never'), optional: 1 },
                { title: 'ends', value: (one) => sayWhen(one.expiresAt) },
              ],
              view,
            ),
    }
  },
})

export const tokenRm = defineCommand({
  name: 'token rm',
  aliases: ['token remove', 'token delete'],
  group: 'web',
  summary: 'take a token back; whoever is connected with it is cut off',
  arguments: {
    id: {
      label: 'ID',
      complete: async ({ app, caller }) => (await listTokens(app.sql, caller.accountId)).map(({ id }) => String(id)),
    },
  },
  async run({ app, caller }, { args }) {
    const id = /^\d{1,9}$/.test(args.id) ? Number(args.id) : 0
    await app.sql.begin(async (tx) => {
      if (!(await removeToken(tx, caller.accountId, id))) {
        throw new CommandError('token.not_found', 3, `no token ${shown(args.id)}`, {
          wayOn: 'token ls shows those there are',
        })
      }
      await recordEvent(tx, caller, 'token.revoked', null, { id })
    })
    const keys = await keysOfToken(app.sql, caller.accountId, id)
    const left = keys.length
      ? `keys that were added with it are still good: ${sayList(keys.map(harmless))}; to remove one: ssh-key remove\n`
      : ''
    return { json: { revoked: id, ssh_keys: keys }, text: `token ${id} opens nothing any more\n${left}` }
  },
})

/** Also what `ssh-key generate-api-key` makes. */
export async function newToken({ app, caller }: Context, asked: Asked) {
  controlUrl(app.settings)
  if (asked.machine !== undefined && asked.tag !== undefined) throw usageError('--machine and --tag exclude each other')
  const machine = asked.machine === undefined ? undefined : await reachable(app, caller, asked.machine)
  const tag = asked.tag === undefined ? undefined : validTags([asked.tag])[0]
  const label = (asked.label ?? '').replaceAll(/[\p{Cc}\p{Cf}]+/gu, ' ').trim()
  if (label.length > LABEL_MOST) throw usageError(`--label has at most ${LABEL_MOST} characters`)
  const { scope, keyId } = caller
  const leftMs = scope ? Math.max(1, scope.expiresAtMs - Date.now()) : LONGEST_MS
  const wantedMs = asked.expires ?? DEFAULT_MS
  if (wantedMs > LONGEST_MS) throw usageError('a token is good for at most 400 days')
  const expiresInMs = Math.min(wantedMs, leftMs)
  const commands = commandsOf(asked.cmds, scope)
  try {
    const { token, id, expiresAt } = await app.sql.begin(async (tx) => {
      const made = await createToken(tx, {
        accountId: caller.accountId,
        label,
        machineId: machine?.id,
        tag,
        commands,
        expiresInMs,
        madeBy: scope && makerOf(scope, keyId),
      })
      await recordEvent(tx, caller, 'token.created', machine ?? null, { id: made.id, label })
      return made
    })
    const use = machine
      ? `curl -H 'Authorization: Bearer …' ${httpsUrl(app.settings, machine.name)}`
      : 'Authorization: Bearer …'
    return {
      json: {
        id,
        token,
        label,
        machine: machine?.name ?? null,
        tag: tag ?? null,
        cmds: commands ?? null,
        expires_at: expiresAt.toISOString(),
      },
      text: (view: { style: { dim(text: string): string } }) => `${token}\n${view.style.dim(use)}\n`,
    }
  } catch (error) {
    if (error instanceof TokenError) throw new CommandError('token.too_many', 5, error.message, { cause: error })
    throw error
  }
}

/**
 * @param scope of the token that asks: what it makes may run no more than itself
 * @returns undefined: none were named
 */
function commandsOf(typed: string | undefined, scope: TokenScope | undefined): readonly string[] | undefined {
  const own = scope?.commands
  if (typed === undefined) return own
  const names = typed.split(',').map((name) => name.trim().replaceAll(/\s+/g, ' '))
  if (names.length === 1 && names[0] === 'none') return []
  for (const name of names) {
    const named = TABLE.filter((command) => isNamed([name], command))
    if (named.length === 0) {
      const near = nearest(name, [...firstWords(TABLE), ...TABLE.map((command) => command.name)])
      throw usageError(`no command called ${shown(name)}`, near ? `did you mean ${near}` : 'help lists the commands')
    }
    const beyond = named.find((command) => (own ? !isNamed(own, command) : scope && command.signsIn))
    if (beyond) throw new CommandError('token.not_allowed', 4, `this token may not give leave to run ${beyond.name}`)
  }
  return [...new Set(names)]
}

function makerOf({ tokenId }: TokenScope, keyId: number | null) {
  if (tokenId !== undefined) return { tokenId }
  return keyId === null ? undefined : { keyId }
}

function runs({ commands }: Token): string {
  if (commands === null) return 'any'
  return commands.length === 0 ? 'none' : commands.join(', ')
}

function opens({ machineName, tag }: Token): string {
  if (machineName !== null) return machineName
  return tag === null ? 'all machines' : `tag ${tag}`
}
