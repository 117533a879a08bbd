import type { DoctorFinding } from '../../migrations/schema.ts'
import type { App } from '../app.ts'
import type { Completer, Context } from './command.ts'
import { defineCommand } from './command.ts'
import { CommandError, usageError } from './error.ts'
import { recordEvent } from './machine-steps.ts'
import { harmless, table, wrap } from './text.ts'
import { sayBytes, sayDuration, sayList, sayWhen, shown } from './values.ts'

/** Mail that waits longer than this does not get through. */
const MAIL_LATE = '15 minutes'
/** More, and leases and expiry dates mean something else to the database than to a person. */
const CLOCK_SKEW_LIMIT_MS = 5_000

type Finding = DoctorFinding & { host: string }

export const doctor = defineCommand({
  name: 'doctor',
  group: 'operator',
  operator: true,
  summary: 'checks the installation and says what to fix',
  async run({ app }) {
    const findings = [...(await hostFindings(app)), ...(await gatewayFindings(app))]
    const bad = findings.filter((finding) => !finding.ok)
    return {
      json: { ok: bad.length === 0, findings },
      exit: bad.length ? 1 : 0,
      text: (view) => {
        const { style } = view
        const lines = findings
          .toSorted((a, b) => Number(a.ok) - Number(b.ok))
          .flatMap((finding) => {
            const mark = finding.ok ? style.dim('ok  ') : style.failure('fix ')
            const text = `${finding.host}: ${finding.message}`
            const [head = '', ...rest] = wrap(harmless(text), view.columns - 4)
            const remedy = finding.ok || !finding.remedy ? [] : wrap(harmless(finding.remedy), view.columns - 4)
            return [`${mark}${head}`, ...[...rest, ...remedy].map((line) => `    ${line}`)]
          })
        const last = bad.length
          ? `${bad.length} of ${findings.length} to fix`
          : `all ${findings.length} checks are well`
        return `${[...lines, last].join('\n')}\n`
      },
    }
  },
})

async function hostFindings(app: App): Promise<Finding[]> {
  const hosts = await app.sql<
    { name: string; doctor: DoctorFinding[]; live: boolean; lease_expires_at: Date; images: unknown[] }[]
  >`
    select name, doctor, lease_expires_at > now() as live, lease_expires_at, images from hosts order by name`
  if (hosts.length === 0) {
    return [
      {
        host: 'servers',
        check: 'host',
        ok: false,
        message: 'no server has ever reported',
        remedy: 'is vmhost running? npm start runs it',
      },
    ]
  }
  return hosts.flatMap((host) => [
    host.live
      ? { host: host.name, check: 'lease', ok: true, message: 'reports regularly' }
      : {
          host: host.name,
          check: 'lease',
          ok: false,
          message: `has not reported since ${sayWhen(host.lease_expires_at)}`,
          remedy: 'its machines go on, but nothing can be changed; start vmhost there',
        },
    ...(host.images.length
      ? []
      : [
          {
            host: host.name,
            check: 'images',
            ok: false,
            message: 'has no image to make machines of',
            remedy: 'npm run setup',
          },
        ]),
    ...host.doctor.map((finding) => ({ host: host.name, ...finding })),
  ])
}

async function gatewayFindings(app: App): Promise<Finding[]> {
  const { settings } = app
  const before = Date.now()
  const [now] = await app.sql<
    { at: Date; version: string }[]
  >`select clock_timestamp() as at, current_setting('server_version') as version`
  const skewMs = now ? now.at.getTime() - (before + Date.now()) / 2 : 0
  const [mail] = await app.sql<{ late: number; last_error: string | null }[]>`
    select count(*)::int as late, max(last_error) as last_error from mails
    where sent_at is null and created_at < now() - ${MAIL_LATE}::interval`
  const late = mail?.late ?? 0
  const finding = (check: string, ok: boolean, message: string, remedy?: string): Finding => ({
    host: 'gateway',
    check,
    ok,
    message,
    ...(remedy === undefined ? {} : { remedy }),
  })
  return [
    finding('database', true, `Postgres ${now?.version ?? ''} answers after ${Date.now() - before} ms`),
    finding(
      'clock',
      Math.abs(skewMs) < CLOCK_SKEW_LIMIT_MS,
      `the clocks of gateway and database differ by ${Math.abs(Math.round(skewMs))} ms`,
      'set both by NTP: leases and expiry dates depend on them',
    ),
    settings.smtp === undefined
      ? finding('mail', true, 'no BERTH_SMTP: mail is kept here, mail shows it')
      : finding(
          'mail',
          late === 0,
          late ? `${late} mails wait: ${mail?.last_error ?? 'not tried yet'}` : 'mail goes out',
          'see BERTH_SMTP',
        ),
    finding('uptime', true, `serves since ${sayDuration(Date.now() - app.startedAt.getTime())}`),
  ]
}

export const mail = defineCommand({
  name: 'mail',
  group: 'operator',
  operator: true,
  summary: 'mail that was not sent, for you to pass on',
  description: 'Without BERTH_SMTP every mail is kept here; with it those that could not be sent.',
  arguments: { id: { label: 'ID', optional: true } },
  async run({ app }, { args }) {
    type Mail = {
      id: number
      recipient: string
      subject: string
      body: string
      created_at: Date
      last_error: string | null
    }
    const mails = await app.sql<Mail[]>`
      select id, recipient, subject, body, created_at, last_error from mails where sent_at is null order by id desc limit 200`
    if (args.id === undefined) {
      return {
        json: {
          mails: mails.map((one) => ({
            id: one.id,
            to: one.recipient,
            subject: one.subject,
            created_at: one.created_at.toISOString(),
          })),
        },
        text: (view) =>
          mails.length === 0
            ? 'no mail is kept\n'
            : table(
                mails,
                [
                  { title: 'id', value: (one) => String(one.id), right: true },
                  { title: 'to', value: (one) => harmless(one.recipient), flexible: true },
                  { title: 'subject', value: (one) => harmless(one.subject), flexible: true },
                  { title: 'written', value: (one) => sayWhen(one.created_at), optional: 1 },
                ],
                view,
              ),
      }
    }
    const found = mails.find((one) => String(one.id) === args.id)
    if (!found)
      throw new CommandError('mail.not_found', 3, `no mail ${shown(args.id)}`, { wayOn: 'mail lists those kept' })
    return {
      json: { ...found, created_at: found.created_at.toISOString() },
      text: `to ${harmless(found.recipient)}\n${harmless(found.subject)}\n\n${harmless(found.body).trimEnd()}\n`,
    }
  },
})

type HostRow = {
  id: number
  name: string
  live: boolean
  draining: boolean
  cpus: number
  memory_bytes: number
  promised_bytes: number
  memory_overcommit: string
  store_bytes: number
  store_free_bytes: number
  hypervisor: string
  accelerator: string
  accelerator_reason: string
  machines: number
}

const hostNamesOf: Completer = async ({ app }) => (await listHosts(app)).map((host) => host.name)

async function listHosts(app: App): Promise<HostRow[]> {
  return await app.sql<HostRow[]>`
    select id, name, lease_expires_at > now() as live, draining, cpus, memory_bytes, memory_overcommit, store_bytes,
      store_free_bytes, hypervisor, accelerator, accelerator_reason,
      coalesce((select sum(memory_bytes) from machines where host_id = hosts.id and observed_state <> 'gone'
        and (desired_state = 'running' or observed_state in ('creating', 'running'))), 0)::bigint as promised_bytes,
      (select count(*)::int from machines where host_id = hosts.id and observed_state <> 'gone') as machines
    from hosts order by name`
}

export const hostLs = defineCommand({
  name: 'host ls',
  aliases: ['host list'],
  group: 'operator',
  operator: true,
  summary: 'the servers: state, load, what is promised',
  async run({ app }) {
    const hosts = await listHosts(app)
    return {
      json: {
        hosts: hosts.map((host) => ({
          name: host.name,
          status: hostStatus(host),
          cpus: host.cpus,
          memory_bytes: host.memory_bytes,
          memory_promised_bytes: host.promised_bytes,
          memory_overcommit: Number(host.memory_overcommit),
          store_bytes: host.store_bytes,
          store_free_bytes: host.store_free_bytes,
          hypervisor: host.hypervisor,
          accelerator: host.accelerator,
          accelerator_reason: host.accelerator_reason,
          machines: host.machines,
        })),
      },
      text: (view) =>
        hosts.length === 0
          ? 'no server yet\n'
          : table(
              hosts,
              [
                { title: 'name', value: (host) => host.name, flexible: true },
                { title: 'status', value: hostStatus },
                { title: 'machines', value: (host) => String(host.machines), right: true },
                { title: 'cpu', value: (host) => String(host.cpus), right: true, optional: 3 },
                {
                  title: 'memory promised',
                  value: (host) =>
                    `${sayBytes(host.promised_bytes)} of ${sayBytes(Math.floor(host.memory_bytes * Number(host.memory_overcommit)))}`,
                  right: true,
                },
                { title: 'disk free', value: (host) => sayBytes(host.store_free_bytes), right: true, optional: 2 },
                {
                  title: 'hypervisor',
                  value: (host) => [host.hypervisor, host.accelerator].filter(Boolean).join(' '),
                  optional: 4,
                },
              ],
              view,
            ),
    }
  },
})

function hostStatus(host: { live: boolean; draining: boolean }): string {
  if (!host.live) return 'silent'
  return host.draining ? 'draining' : 'up'
}

const HOST = { name: { label: 'HOST', complete: hostNamesOf } } as const

export const hostDrain = defineCommand({
  name: 'host drain',
  group: 'operator',
  operator: true,
  summary: 'no new machines on a server',
  arguments: HOST,
  run: async (context, { args }) => setDraining(context, args.name, true),
})

export const hostUndrain = defineCommand({
  name: 'host undrain',
  group: 'operator',
  operator: true,
  summary: 'new machines on it again',
  arguments: HOST,
  run: async (context, { args }) => setDraining(context, args.name, false),
})

export const hostOvercommit = defineCommand({
  name: 'host overcommit',
  group: 'operator',
  operator: true,
  summary: 'how much memory is promised for each GiB there is',
  description: '1 promises what there is. More relies on machines that do not use all of theirs.',
  arguments: { ratio: { label: 'RATIO' }, name: { label: 'HOST', optional: true, complete: hostNamesOf } },
  examples: ['host overcommit 1.5'],
  async run({ app, caller }, { args }) {
    const ratio = Number(args.ratio)
    if (!/^\d{1,2}(\.\d{1,2})?$/.test(args.ratio) || ratio < 0.1 || ratio > 20) {
      throw usageError(`RATIO is a number between 0.1 and 20, not ${shown(args.ratio)}`)
    }
    if (args.name !== undefined) await knownHost(app, args.name)
    const rows = await app.sql<{ name: string }[]>`
      update hosts set memory_overcommit = ${args.ratio}::numeric where ${args.name === undefined} or name = ${args.name ?? ''} returning name`
    await recordEvent(app.sql, caller, 'host.overcommit', null, { hosts: rows.map((row) => row.name), ratio })
    const names = rows.map((row) => row.name)
    return {
      json: { hosts: names, memory_overcommit: ratio },
      text: `${sayList(names)}: ${ratio} GiB promised for each GiB there is\n`,
    }
  },
})

async function setDraining({ app, caller }: Context, name: string, draining: boolean) {
  await knownHost(app, name)
  await app.sql`update hosts set draining = ${draining} where name = ${name}`
  await recordEvent(app.sql, caller, draining ? 'host.draining' : 'host.undrained', null, { host: name })
  const text = draining
    ? `${name} takes no new machines; those on it stay until they are moved or removed\n`
    : `${name} takes new machines again\n`
  return { json: { name, draining }, text }
}

async function knownHost(app: App, name: string): Promise<void> {
  const names = (await listHosts(app)).map((host) => host.name)
  if (names.includes(name)) return
  throw new CommandError('host.not_found', 3, `no server called ${shown(name)}`, {
    wayOn: `servers: ${sayList(names)}`,
  })
}
