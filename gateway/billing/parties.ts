/** Who sells and who buys, as the next invoices will name them. An invoice keeps what was so when it was closed. */
import type { Db } from '../../migrations/connect.ts'
import type { Buyer, Party } from '../../migrations/schema.ts'

/** The seller in `settings`, as JSON. */
export const SELLER = 'billing_seller'

/** @returns without fields as long as nothing was set */
export async function readSeller(db: Db): Promise<Party> {
  const [row] = await db<{ value: string }[]>`select value from settings where key = ${SELLER}`
  return row ? (JSON.parse(row.value) as Party) : {}
}

export async function setSeller(tx: Db, seller: Party): Promise<void> {
  await tx`insert into settings (key, value) values (${SELLER}, ${JSON.stringify(seller)})
    on conflict (key) do update set value = excluded.value`
}

/** @returns without fields as long as nothing was set */
export async function readBuyer(db: Db, accountId: number): Promise<Party> {
  const [row] = await db<{ details: Party | null }[]>`
    select billing_details as details from accounts where id = ${accountId}`
  return row?.details ?? {}
}

export async function setBuyer(tx: Db, accountId: number, buyer: Party): Promise<void> {
  await tx`update accounts set billing_details = ${JSON.stringify(buyer)}::text::jsonb where id = ${accountId}`
}

/** What an invoice keeps of one; nothing of it: null. */
export function kept<P extends Party | Buyer>(party: P): P | null {
  return Object.values(party).some((field) => field !== undefined) ? party : null
}

/** `Example Ltd`, its address, `tax number XY1`: a line each, of what was given. */
export function partyLines({ name, address, tax_id: taxId }: Party): string[] {
  return [name, address, taxId && `tax number ${taxId}`].filter((line) => line !== undefined && line !== '') as string[]
}
