import type { Db } from '../../migrations/connect.ts'
import type { Party } from '../../migrations/schema.ts'
import { readBuyer, readSeller, setBuyer, setSeller } from '../billing/parties.ts'
import type { Context, FlagSpecs, FlagValues, Result } from './command.ts'
import { defineCommand } from './command.ts'
import { usageError } from './error.ts'
import { recordEvent } from './machine-steps.ts'
import { definitions, type View } from './text.ts'

const MOST = { name: 120, address: 300, 'tax-id': 40 }

const FLAGS = {
  name: { type: 'string', value: 'NAME', summary: 'of the person or company; none takes it away' },
  address: { type: 'string', value: 'ADDRESS', summary: 'street, town and country; none takes it away' },
  'tax-id': { type: 'string', value: 'NUMBER', summary: 'tax or VAT number; none takes it away' },
} as const satisfies FlagSpecs

const KEEPS = 'An invoice keeps what is set when it is closed. No tax is computed of it: amounts are what rates say.'

export const billingDetails = defineCommand({
  name: 'billing details',
  group: 'you',
  summary: 'name, address and tax number that your invoices are made out to',
  description: `Without a flag it shows them. ${KEEPS}`,
  flags: FLAGS,
  examples: ["billing details --name 'Example Ltd' --address '1 High Street, Anytown'"],
  run: (context, { flags }) => {
    const { accountId } = context.caller
    return showOrChange(context, flags, {
      lock: (tx) => tx`select from accounts where id = ${accountId} for no key update`,
      read: (tx) => readBuyer(tx, accountId),
      write: (tx, details) => setBuyer(tx, accountId, details),
      change: 'billing.details_set',
      nothing: 'your invoices name your account alone',
    })
  },
})

export const billingSeller = defineCommand({
  name: 'billing seller',
  group: 'operator',
  operator: true,
  summary: 'name, address and tax number of whoever sells here, for all invoices',
  description: `Without a flag it shows them. ${KEEPS}`,
  flags: FLAGS,
  examples: ["billing seller --name 'Berths of Anytown' --tax-id XY987654321"],
  run: (context, { flags }) =>
    showOrChange(context, flags, {
      lock: (tx) => tx`select pg_advisory_xact_lock(hashtextextended('berth.billing_seller', 0))`,
      read: readSeller,
      write: setSeller,
      change: 'billing.seller_set',
      nothing: 'invoices name no seller',
    }),
})

type Given = FlagValues<typeof FLAGS>
type Changes = ReadonlyMap<keyof Party, string>

type Kept = {
  /** holds until the end of the transaction: two changes at once lose nothing of each other */
  lock(tx: Db): Promise<unknown>
  read(tx: Db): Promise<Party>
  write(tx: Db, party: Party): Promise<void>
  /** what `audit` calls it when it is changed */
  change: string
  /** said of one without a field */
  nothing: string
}

async function showOrChange({ app, caller }: Context, flags: Given, kept: Kept): Promise<Result> {
  const changes = changesIn(flags)
  const party = await app.sql.begin(async (tx) => {
    await kept.lock(tx)
    const now = changed(await kept.read(tx), changes)
    if (changes.size === 0) return now
    await kept.write(tx, now)
    await recordEvent(tx, caller, kept.change, null, Object.fromEntries(changes))
    return now
  })
  return { json: document(party), text: (view) => text(party, kept.nothing, view) }
}

/** What was typed, `none` where it is to go. */
function changesIn(flags: Given): Changes {
  const changes = new Map<keyof Party, string>()
  for (const flag of ['name', 'address', 'tax-id'] as const) {
    const typed = flags[flag]
    if (typed === undefined) continue
    const line = typed.replaceAll(/[\p{Cc}\p{Cf}\s]+/gu, ' ').trim()
    if (line === '') throw usageError(`--${flag} is empty`, `--${flag} none takes it away`)
    if (line.length > MOST[flag]) throw usageError(`--${flag} has at most ${MOST[flag]} characters`)
    changes.set(flag === 'tax-id' ? 'tax_id' : flag, line)
  }
  return changes
}

function changed(party: Party, changes: Changes): Party {
  const fields = Object.entries({ ...party, ...Object.fromEntries(changes) })
  return Object.fromEntries(fields.filter(([, value]) => value !== 'none'))
}

function document({ name, address, tax_id: taxId }: Party) {
  return { name: name ?? null, address: address ?? null, tax_id: taxId ?? null }
}

function text(party: Party, nothing: string, view: View): string {
  const { name, address, tax_id: taxId } = party
  const rows = [
    ['name', name],
    ['address', address],
    ['tax number', taxId],
  ].filter((row): row is [string, string] => row[1] !== undefined)
  return rows.length === 0 ? `${nothing}\n` : definitions(rows, view, 0)
}
