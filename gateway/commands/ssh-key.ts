import { type AccountKey, addKeys, KeyError, listKeys, removeKey, renameKey } from '../accounts/keys.ts'
import { type KeyLine, PublicKeyError, parseKeyFile, parseKeyLine } from '../accounts/public-key.ts'
import type { Completer } from './command.ts'
import { defineCommand } from './command.ts'
import { machineNames } from './complete.ts'
import { CommandError, usageError } from './error.ts'
import { recordEvent } from './machine-steps.ts'
import { harmless, table } from './text.ts'
import { newToken } from './token.ts'
import { sayWhen, shown } from './values.ts'

const INPUT_LIMIT_BYTES = 64 * 1024

const keyNames: Completer = async ({ app, caller }) =>
  (await listKeys(app.sql, caller.accountId)).map((key) => key.name)

export const sshKeyAdd = defineCommand({
  name: 'ssh-key add',
  group: 'you',
  summary: 'let another key in to your account',
  description: 'The public key is given as words, or on stdin: a line of id_*.pub, or a whole authorized_keys.',
  flags: { name: { type: 'string', summary: 'how lists call it; its comment unless given' } },
  arguments: { key: { label: 'KEY', repeated: true, optional: true } },
  examples: ['ssh-key add ssh-ed25519 AAAA... you@laptop', 'ssh-key add --name laptop < ~/.ssh/id_ed25519.pub'],
  async run(context, { flags, args }) {
    const { app, caller } = context
    const text = args.key.length ? args.key.join(' ') : await context.readStdin(INPUT_LIMIT_BYTES, 'the public key')
    const lines = await told(async () => keyLines(text))
    const keys = await told(() =>
      addKeys(app.sql, caller.accountId, lines, flags.name, (tx, { name, fingerprint }) =>
        recordEvent(tx, caller, 'key.added', null, { name, fingerprint }),
      ),
    )
    return {
      json: { ssh_keys: keys.map(({ key, added }) => ({ ...keyDocument(key), added })) },
      text: keys
        .map(({ key, added }) => `${harmless(key.name)} ${key.fingerprint} ${added ? 'is in' : 'was there already'}\n`)
        .join(''),
    }
  },
})

export const sshKeyList = defineCommand({
  name: 'ssh-key list',
  aliases: ['ssh-key ls'],
  group: 'you',
  summary: 'the keys of your account',
  async run({ app, caller }) {
    const keys = await listKeys(app.sql, caller.accountId)
    return {
      json: { ssh_keys: keys.map((key) => ({ ...keyDocument(key), current: key.id === caller.keyId })) },
      text: (view) =>
        keys.length === 0
          ? 'no key; to add one: ssh-key add\n'
          : table(
              keys,
              [
                {
                  title: 'name',
                  value: (key) => harmless(key.name) + (key.id === caller.keyId ? ' (this one)' : ''),
                  flexible: true,
                },
                { title: 'fingerprint', value: (key) => key.fingerprint, flexible: true },
                { title: 'used', value: (key) => (key.lastUsedAt ? sayWhen(key.lastUsedAt) : 'never'), optional: 1 },
                { title: 'type', value: (key) => key.algorithm.replace(/^ssh-|@openssh\.com$/g, ''), optional: 2 },
              ],
              view,
            ),
    }
  },
})

export const sshKeyRemove = defineCommand({
  name: 'ssh-key remove',
  aliases: ['ssh-key rm', 'ssh-key delete'],
  group: 'you',
  summary: 'let a key in no more; its connections end',
  arguments: { key: { label: 'KEY', complete: keyNames } },
  examples: ['ssh-key remove laptop'],
  async run({ app, caller }, { args }) {
    const key = await told(
      () =>
        removeKey(app.sql, caller.accountId, args.key, (tx, { name, fingerprint }) =>
          recordEvent(tx, caller, 'key.removed', null, { name, fingerprint }),
        ),
      args.key,
    )
    return { json: { removed: keyDocument(key) }, text: `${harmless(key.name)} is out\n` }
  },
})

export const sshKeyRename = defineCommand({
  name: 'ssh-key rename',
  group: 'you',
  summary: 'another name for a key',
  arguments: { key: { label: 'KEY', complete: keyNames }, name: { label: 'NAME' } },
  async run({ app, caller }, { args }) {
    await told(
      () =>
        app.sql.begin(async (tx) => {
          const key = await renameKey(tx, caller.accountId, args.key, args.name)
          const detail = { name: args.name, was: key.name, fingerprint: key.fingerprint }
          if (key.name !== args.name) await recordEvent(tx, caller, 'key.renamed', null, detail)
        }),
      args.key,
    )
    return { json: { old_name: args.key, new_name: args.name }, text: `${args.key} is called ${args.name} now\n` }
  },
})

export const sshKeyGenerateApiKey = defineCommand({
  name: 'ssh-key generate-api-key',
  group: 'you',
  summary: 'the same as token new, under the name that exe.dev has for it',
  flags: {
    label: { type: 'string', summary: 'how lists call it' },
    cmds: { type: 'string', value: 'A,B', summary: 'the commands it may run' },
    machine: {
      type: 'string',
      value: 'NAME',
      aliases: ['vm'],
      summary: 'for that machine alone',
      complete: machineNames,
    },
    tag: { type: 'string', summary: 'for your machines with that tag' },
    expires: { type: 'duration', aliases: ['exp'], summary: 'how long it is good; 30d unless given', value: '30d' },
  },
  run: (context, { flags }) => newToken(context, flags),
})

export function keyDocument(key: AccountKey) {
  return {
    name: key.name,
    type: key.algorithm,
    fingerprint: key.fingerprint,
    comment: key.comment,
    public_key: `${key.algorithm} ${key.publicKey.toString('base64')}`,
    created_at: key.createdAt.toISOString(),
    last_used_at: key.lastUsedAt?.toISOString() ?? null,
  }
}

function keyLines(text: string): KeyLine[] {
  const many = text.trim().split('\n').length > 1 && !text.includes('---- BEGIN')
  if (!many) return [parseKeyLine(text)]
  const lines = parseKeyFile(text)
  if (lines.length === 0) throw usageError('no key in that', 'expected a line such as ssh-ed25519 AAAA... name@laptop')
  return lines
}

/**
 * The accounts' own errors, as commands report them.
 * @param typed the key, as it was called
 */
async function told<T>(step: () => Promise<T>, typed = ''): Promise<T> {
  try {
    return await step()
  } catch (error) {
    if (error instanceof PublicKeyError) throw new CommandError('key.invalid', 2, error.message, { cause: error })
    if (!(error instanceof KeyError)) throw error
    if (error.code === 'key.not_found') {
      throw new CommandError('key.not_found', 3, `no key called ${shown(typed)}`, {
        wayOn: 'ssh-key list shows those there are',
        cause: error,
      })
    }
    const exit = error.code === 'key.name' ? 2 : error.code === 'key.taken' ? 4 : 1
    throw new CommandError(error.code, exit, error.message, { cause: error })
  }
}
