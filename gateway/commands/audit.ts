import { defineCommand } from './command.ts'
import { machineNames } from './complete.ts'
import { reachable } from './machine-steps.ts'
import { harmless, table } from './text.ts'

type Event = {
  id: number
  at: Date
  actor: string
  address: string | null
  kind: string
  machine_name: string | null
  detail: Record<string, unknown>
}

export const audit = defineCommand({
  name: 'audit',
  group: 'you',
  summary: 'who did what, when, from where',
  description:
    'The newest at the bottom, times in UTC. With NAME only what concerns that machine, under any name it had.',
  flags: { last: { type: 'integer', short: 'n', min: 1, max: 1000, summary: 'how many; 30 unless given' } },
  arguments: { name: { label: 'NAME', optional: true, complete: machineNames } },
  examples: ['audit', 'audit demo -n 100'],
  async run({ app, caller }, { flags, args }) {
    const { sql } = app
    const machine = args.name === undefined ? undefined : await reachable(app, caller, args.name)
    // Indexes events_by_machine and events_by_account.
    const about = machine ? sql`machine_id = ${machine.id}` : sql`account_id = ${caller.accountId}`
    const newest = await sql<Event[]>`
      select id, at, actor, address, kind, machine_name, detail from events where ${about} order by id desc limit ${flags.last ?? 30}`
    const events = newest.toReversed()
    const whose = (event: Event) => (event.actor === `account:${caller.accountId}` ? 'you' : event.actor)
    return {
      json: { events: events.map((event) => ({ ...event, at: event.at.toISOString() })) },
      text: (view) =>
        events.length === 0
          ? 'nothing yet\n'
          : table(
              events,
              [
                { title: 'when', value: (event) => event.at.toISOString().slice(0, 19).replace('T', ' ') },
                { title: 'what', value: (event) => event.kind },
                { title: 'machine', value: (event) => event.machine_name ?? '', flexible: true },
                { title: 'who', value: whose, optional: 1 },
                { title: 'from', value: (event) => event.address ?? '', optional: 2 },
                { title: 'detail', value: (event) => sayDetail(event.detail), flexible: true, optional: 3 },
              ],
              view,
            ),
    }
  },
})

function sayDetail(detail: Record<string, unknown>): string {
  return harmless(
    Object.entries(detail)
      .map(([key, value]) => `${key} ${typeof value === 'string' ? value : JSON.stringify(value)}`)
      .join(', '),
  ).replaceAll('\n', ' ')
}
