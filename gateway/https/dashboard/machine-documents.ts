import type { App } from '../../app.ts'
import { monthOf } from '../../billing/calendar.ts'
import { machineCosts } from '../../billing/usage.ts'
import { readDefaults } from '../../commands/defaults.ts'
import { hostNames, listedDocument } from '../../commands/machine-document.ts'
import type { Machine } from '../../machines.ts'
import type { Documents } from './feed.ts'

/** Beyond so many the whole list is read at once. */
const ONE_BY_ONE_MOST = 8

/** An account's machines as `ls --json` shows them, but for what they cost. */
export async function readDocuments(app: App, accountId: number): Promise<Documents> {
  return await documentsOf(app, accountId, await app.machines.list({ accountId }))
}

/** The same of some of them; those that are not among the account's machines are left out. */
export async function readSomeDocuments(app: App, accountId: number, ids: readonly number[]): Promise<Documents> {
  if (ids.length > ONE_BY_ONE_MOST) {
    const wanted = new Set(ids)
    const all = await app.machines.list({ accountId })
    return await documentsOf(
      app,
      accountId,
      all.filter(({ id }) => wanted.has(id)),
    )
  }
  const found = await Promise.all(ids.map((id) => app.machines.byId(id, { accountId })))
  return await documentsOf(
    app,
    accountId,
    found.filter((machine) => machine !== undefined).filter(({ desiredState }) => !GONE.has(desiredState)),
  )
}

/** No list shows those. */
const GONE = new Set(['trashed', 'gone'])

async function documentsOf(app: App, accountId: number, machines: readonly Machine[]): Promise<Documents> {
  if (machines.length === 0) return new Map()
  const [hosts, defaults] = await Promise.all([hostNames(app), readDefaults(app.sql, accountId)])
  return new Map(
    machines.map((machine) => [machine.id, JSON.stringify(listedDocument(machine, app.settings, { hosts, defaults }))]),
  )
}

/** What each has cost this month, in millionths of a dollar, as JSON. */
export async function readCosts({ sql }: App, accountId: number): Promise<string> {
  const costs = await machineCosts(sql, accountId, monthOf(new Date()))
  return JSON.stringify(Object.fromEntries([...costs].map(([id, micros]) => [id, Number(micros)])))
}
