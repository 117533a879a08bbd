import { release } from 'node:os'
import type { DoctorFinding } from '../../migrations/schema.ts'
import type { App } from '../app.ts'
import { sayMonth } from '../billing/calendar.ts'
import { readWaiting, sayMonths } from '../billing/clock.ts'
import { readFailures } from '../billing/failures.ts'
import { defineCommand } from './command.ts'
import { httpsFindings } from './doctor-https.ts'
import { harmless, wrap } from './text.ts'
import { sayAge, sayDuration } from './values.ts'

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
    {
      name: string
      doctor: DoctorFinding[]
      live: boolean
      lease_expires_at: Date
      images: unknown[]
      hypervisor: string
    }[]
  >`
    select name, hypervisor, doctor, lease_expires_at > now() as live, lease_expires_at, images from hosts order by name`
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
          message: `has not reported for ${sayAge(host.lease_expires_at)}`,
          remedy: 'its machines go on, but nothing can be changed; start vmhost there',
        },
    ...(host.hypervisor
      ? [
          {
            host: host.name,
            check: 'hypervisor',
            ok: true,
            message: `machines run under ${host.hypervisor}`,
          },
        ]
      : []),
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

type MakeFinding = (check: string, ok: boolean, message: string, remedy?: string) => Finding

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
  const finding: MakeFinding = (check, ok, message, remedy) => ({
    host: 'gateway',
    check,
    ok,
    message,
    ...(remedy === undefined ? {} : { remedy }),
  })
  return [
    finding('versions', true, `runs on Node ${process.versions.node} and Linux ${release()}`),
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
    ...(await httpsFindings(app, finding)),
    await billingFinding(app, finding),
    finding('uptime', true, `has served for ${sayDuration(Date.now() - app.startedAt.getTime())}`),
  ]
}

async function billingFinding(app: App, finding: MakeFinding): Promise<Finding> {
  const waiting = await readWaiting(app.sql)
  if (waiting) {
    const text = `${sayMonths(waiting.months)} would be closed, but ${waiting.because}`
    const remedy = `set the clock right, or if it is: billing runs --close ${waiting.months.at(-1)}`
    return finding('billing', false, text, remedy)
  }
  const failures = (await readFailures(app.sql)).filter(({ attempts }) => attempts > 0)
  const [first] = failures
  if (!first) return finding('billing', true, 'no invoice and no limit waits for anything')
  const more = failures.length === 1 ? '' : `, and ${failures.length - 1} more`
  const text = `${first.task} of account ${first.accountId} for ${sayMonth(first.month)} failed ${first.attempts === 1 ? 'once' : `${first.attempts} times`}${more}: ${first.problem}`
  return finding('billing', false, text, 'billing runs shows all; when it is mended: billing runs --retry')
}
