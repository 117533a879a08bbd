import type { App } from '../app.ts'
import { monthOf } from '../billing/calendar.ts'
import { sayMoney } from '../billing/money.ts'
import { machineCosts } from '../billing/usage.ts'
import type { Machine } from '../machines.ts'
import type { Settings } from '../settings.ts'
import { defineCommand } from './command.ts'
import { machineNames as completeNames } from './complete.ts'
import { readDefaults } from './defaults.ts'
import { CommandError, wayOnOf } from './error.ts'
import { idleTimeOf } from './idle-time.ts'
import { awakeBecause, hostNames, httpsUrl, listedDocument, sshLine, statusInWords } from './machine-document.ts'
import { type Column, harmless, table, type View, wrap } from './text.ts'
import { sayAge, sayBytes, sayWhen, shown } from './values.ts'

export const ls = defineCommand({
  name: 'ls',
  aliases: ['list'],
  group: 'machines',
  onMachines: true,
  summary: 'your machines: state, why awake, image, size, address, cost',
  description:
    'PATTERN is a name, or a part of names with * for any letters. The cost is that of this month so far, in UTC; on a plan that charges nothing what it would be.',
  flags: {
    long: { type: 'boolean', short: 'l', summary: 'all there is to know of each' },
    group: { type: 'string', choices: ['tag', 'status', 'host'], summary: 'under headings' },
  },
  arguments: { pattern: { label: 'PATTERN', optional: true, complete: completeNames } },
  examples: ['ls', "ls 'web-*' -l", 'ls --json'],
  async run({ app, caller }, { flags, args }) {
    const all = await app.machines.list(caller)
    const { pattern } = args
    const machines = pattern === undefined ? all : all.filter((machine) => matches(machine.name, pattern))
    if (pattern !== undefined && machines.length === 0 && !pattern.includes('*')) {
      const wayOn = all.length ? 'ls shows those you have' : 'you have no machine yet; to make one: new'
      const failure = new CommandError('machine.not_found', 3, `no machine called ${shown(pattern)}`, { wayOn })
      const told = { error: failure.message, code: failure.code, ...wayOnOf(failure) }
      return { json: { vms: [], ...told }, text: '', failures: [failure] }
    }
    const hosts = await hostNames(app)
    const defaults = await readDefaults(app.sql, caller.accountId)
    const costs = await costsOf(app, caller.accountId)
    const rows = machines.map((machine) => ({
      machine,
      cost: costs.get(machine.id),
      host: hosts.get(machine.hostId) ?? '',
      isSleepless: idleTimeOf(machine, defaults).seconds === null,
    }))
    return {
      json: {
        vms: rows.map(({ machine, cost }) => ({
          ...listedDocument(machine, app.settings, { hosts, defaults }),
          ...(cost === undefined ? {} : { cost_this_month_micros: Number(cost) }),
        })),
      },
      text: (view) => {
        if (rows.length === 0) return all.length ? 'no machine matches\n' : 'no machine yet; to make one: new\n'
        const draw = (part: Row[]) =>
          flags.long
            ? part.map((row) => details(row, waysTo(app.settings, row.machine), view)).join('\n')
            : table(part, COLUMNS, view)
        return flags.group ? grouped(rows, flags.group, view, draw) : draw(rows)
      },
    }
  },
})

type Row = { machine: Machine; host: string; isSleepless: boolean; cost: bigint | undefined }

/** A price that cannot be computed keeps nobody from their machines. */
async function costsOf({ sql, log }: App, accountId: number): Promise<Map<number, bigint>> {
  try {
    return await machineCosts(sql, accountId, monthOf(new Date()))
  } catch (error) {
    log.error({ err: error, account: accountId }, 'what machines cost could not be computed')
    return new Map()
  }
}

/** What is shown as a cent, in millionths of a dollar. */
const LEAST_SHOWN = 5001n

const COLUMNS: Column<Row>[] = [
  { title: 'name', value: ({ machine }) => machine.name, style: (text, _row) => text, flexible: true },
  { title: 'status', value: ({ machine }) => statusInWords(machine) },
  { title: 'awake', value: awake, flexible: true, optional: 2 },
  { title: 'image', value: ({ machine }) => machine.image, flexible: true, optional: 1 },
  { title: 'cpu', value: ({ machine }) => String(machine.cpus), right: true, optional: 5 },
  { title: 'memory', value: ({ machine }) => sayBytes(machine.memoryBytes), right: true, optional: 4 },
  { title: 'disk', value: ({ machine }) => sayBytes(machine.diskBytes), right: true, optional: 6 },
  { title: 'address', value: ({ machine }) => machine.address ?? '', optional: 3 },
  { title: 'cost', value: ({ cost }) => sayCost(cost), right: true, optional: 3 },
]

/** A machine that is new has not cost a cent, and a column of nothing says nothing. */
function sayCost(cost = 0n): string {
  return cost < LEAST_SHOWN ? '' : sayMoney(cost)
}

function awake({ machine, isSleepless }: Pick<Row, 'machine' | 'isSleepless'>): string {
  if (machine.observedState !== 'running') return ''
  if (isSleepless) return 'always'
  const { observedIdleSince } = machine
  return awakeBecause(machine) ?? (observedIdleSince ? `idle for ${sayAge(observedIdleSince)}` : '')
}

/** The longer answer is `why`. */
function sleepInWords({ machine, isSleepless }: Row): string[] {
  const { observedState, observedAsleepAt, observedAsleepBecause } = machine
  if (observedState === 'running' && !isSleepless) {
    const because = awake({ machine, isSleepless })
    return because === '' ? [] : [`awake: ${because}`]
  }
  if (observedState !== 'asleep' || observedAsleepBecause === null) return []
  return [`asleep${observedAsleepAt ? ` for ${sayAge(observedAsleepAt)}` : ''}: ${observedAsleepBecause}`]
}

/** What to type, and what to open in a browser. */
function waysTo(settings: Settings, { name, webPublic }: Machine): string[] {
  const page = `${httpsUrl(settings, name)}${webPublic ? ', open to everybody' : ''}`
  return [sshLine(settings, name), ...(settings.https.length > 0 ? [page] : [])]
}

function details(row: Row, ways: readonly string[], view: View): string {
  const { style } = view
  const { machine, host } = row
  const state = statusInWords(machine)
  const facts = [
    ...ways,
    `${machine.image}, ${machine.cpus} cpu, ${sayBytes(machine.memoryBytes)} memory, ${sayBytes(machine.diskBytes)} disk`,
    `${machine.address ?? 'no address'} on ${host}, made ${sayWhen(machine.createdAt)}`,
    ...sleepInWords(row).map(harmless),
    ...(machine.observedReason ? [harmless(machine.observedReason)] : []),
    ...(machine.setupState ? [`setup script: ${setupInWords(machine)}`] : []),
    ...(sayCost(row.cost) === '' ? [] : [`${sayCost(row.cost)} this month`]),
    ...(machine.tags.length ? [`tags: ${machine.tags.join(' ')}`] : []),
    ...(machine.comment ? [harmless(machine.comment)] : []),
  ]
  const head = `${style.bold(machine.name)}  ${machine.observedState === 'failed' ? style.failure(state) : state}`
  return [head, ...facts.flatMap((fact) => wrap(fact, view.columns - 2).map((part) => `  ${part}`))]
    .join('\n')
    .concat('\n')
}

export function setupInWords(machine: Machine): string {
  if (machine.setupState === 'waiting') return 'waiting for the machine'
  if (machine.setupState === 'running') return 'running'
  const status = machine.setupExitStatus === null ? 'without a status' : `with status ${machine.setupExitStatus}`
  return `ended ${status}${machine.setupEndedAt ? ` ${sayWhen(machine.setupEndedAt)}` : ''}`
}

function grouped(rows: Row[], by: 'tag' | 'status' | 'host', view: View, draw: (rows: Row[]) => string): string {
  const groups = new Map<string, Row[]>()
  for (const row of rows) {
    for (const key of keysOf(row, by)) groups.set(key, [...(groups.get(key) ?? []), row])
  }
  return [...groups.entries()]
    .sort(([a], [b]) => a.localeCompare(b))
    .map(([key, part]) => `${view.style.bold(key)}\n${draw(part)}`)
    .join('\n')
}

function keysOf({ machine, host }: Row, by: 'tag' | 'status' | 'host'): string[] {
  if (by === 'host') return [host]
  if (by === 'status') return [statusInWords(machine)]
  return machine.tags.length ? machine.tags : ['(no tag)']
}

/**
 * `*` and `?` as a shell has them, nothing else is special; without either the whole name. No regular expression: with
 * a dozen stars one tries every way to share a long name out among them, and nobody else is served for years.
 */
export function matches(name: string, pattern: string): boolean {
  const wanted = pattern.replaceAll(/\*+/g, '*')
  let next = 0
  let star = -1
  let starAt = 0
  for (let at = 0; at < name.length; ) {
    if (wanted[next] === '*') {
      star = next++
      starAt = at
    } else if (wanted[next] === '?' || wanted[next] === name[at]) {
      next++
      at++
    } else if (star >= 0) {
      // Only the last star need take more: what the ones before it took was the least.
      next = star + 1
      at = ++starAt
    } else return false
  }
  if (wanted[next] === '*') next++
  return next === wanted.length
}
