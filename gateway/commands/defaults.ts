import type { Sql } from '../../migrations/connect.ts'
import { defineCommand } from './command.ts'
import { CommandError, usageError } from './error.ts'
import { parseIdleTime } from './idle-time.ts'
import { imageNames, mayBeReference } from './images.ts'
import { recordEvent } from './machine-steps.ts'
import { nearest } from './nearest.ts'
import { definitions } from './text.ts'
import { MACHINE_SIZES, parseSize, sayList, shown } from './values.ts'

const KEYS = {
  image: {
    summary: 'image of new machines',
    check: (value: string) => {
      if (!mayBeReference(value)) throw usageError(`${shown(value)} is no image`, 'what there is: doc images')
      return value
    },
  },
  cpu: {
    summary: 'virtual CPUs of new machines',
    check: (value: string) => {
      if (!/^([1-9]\d?|1\d\d|2[0-4]\d|25[0-6])$/.test(value)) throw usageError('cpu is a number between 1 and 256')
      return value
    },
  },
  memory: { summary: 'memory of new machines', check: (value: string) => measured(value, 'memory') },
  disk: { summary: 'disk of new machines', check: (value: string) => measured(value, 'disk') },
  'sleep-after': {
    summary: 'idle time before machines sleep that have none of their own, or never',
    check: (value: string) => {
      parseIdleTime(value)
      return value
    },
  },
} as const

export type Defaults = Partial<Record<keyof typeof KEYS, string>>
const KEY_NAMES = Object.keys(KEYS) as (keyof typeof KEYS)[]

/** What `new` takes where a flag is not given, as the account wrote it. */
export async function readDefaults(sql: Sql, accountId: number): Promise<Defaults> {
  const [row] = await sql<{ defaults: Defaults }[]>`select defaults from accounts where id = ${accountId}`
  return row?.defaults ?? {}
}

export const defaultsRead = defineCommand({
  name: 'defaults read',
  group: 'you',
  summary: 'what new takes where a flag is not given',
  arguments: { key: { label: 'KEY', optional: true, complete: () => KEY_NAMES } },
  async run({ app, caller }, { args }) {
    const defaults = await readDefaults(app.sql, caller.accountId)
    if (args.key !== undefined) {
      const value = defaults[knownKey(args.key)]
      if (value === undefined) {
        throw new CommandError('defaults.not_set', 3, `${args.key} is not set`, {
          wayOn: `defaults write ${args.key} VALUE`,
        })
      }
      return { json: { [args.key]: value }, text: `${value}\n` }
    }
    return {
      json: defaults,
      text: (view) =>
        definitions(
          KEY_NAMES.map((key) => [key, `${defaults[key] ?? 'not set'}, ${KEYS[key].summary}`]),
          view,
          0,
        ),
    }
  },
})

export const defaultsWrite = defineCommand({
  name: 'defaults write',
  group: 'you',
  summary: 'set one of them for your account',
  arguments: {
    key: { label: 'KEY', complete: () => KEY_NAMES },
    value: { label: 'VALUE', complete: imageNames },
  },
  examples: ['defaults write memory 2G', 'defaults write image minimal'],
  async run({ app, caller }, { args }) {
    const key = knownKey(args.key)
    const value = KEYS[key].check(args.value)
    if (value.length > 200) throw usageError(`${key} is too long`)
    await app.sql.begin(async (tx) => {
      await tx`update accounts set defaults = defaults || ${tx.json({ [key]: value })} where id = ${caller.accountId}`
      await recordEvent(tx, caller, 'defaults.written', null, { key, value })
    })
    return { json: { [key]: value }, text: `${told(key, value)} from now on\n` }
  },
})

export const defaultsDelete = defineCommand({
  name: 'defaults delete',
  group: 'you',
  summary: 'back to what Berth does by itself',
  arguments: { key: { label: 'KEY', complete: () => KEY_NAMES } },
  async run({ app, caller }, { args }) {
    const key = knownKey(args.key)
    await app.sql.begin(async (tx) => {
      await tx`update accounts set defaults = defaults - ${key}::text where id = ${caller.accountId}`
      await recordEvent(tx, caller, 'defaults.deleted', null, { key })
    })
    return { json: { deleted: key }, text: `${key} is not set any more\n` }
  },
})

/** The idle time is looked up as often as it is asked for, everything else when a machine is made. */
function told(key: keyof typeof KEYS, value: string): string {
  if (key !== 'sleep-after') return `new machines have ${key} ${value}`
  const others = 'machines without a sleep-after of their own'
  return value === 'never' ? `${others} never sleep for being idle` : `${others} sleep when idle for ${value}`
}

function knownKey(typed: string): keyof typeof KEYS {
  const key = KEY_NAMES.find((name) => name === typed)
  if (key) return key
  const near = nearest(typed, KEY_NAMES)
  throw usageError(
    `no default called ${shown(typed)}`,
    near ? `did you mean ${near}` : `there are ${sayList(KEY_NAMES)}`,
  )
}

function measured(value: string, what: keyof typeof MACHINE_SIZES): string {
  parseSize(value, what, MACHINE_SIZES[what])
  return value
}
