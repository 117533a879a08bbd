import { randomBytes } from 'node:crypto'
import type { DoctorFinding } from '../../migrations/schema.ts'
import type { App } from '../app.ts'
import { publicAddresses } from '../dns/addresses.ts'
import { challengeName } from '../domains/records.ts'
import { openChallenges } from '../https/acme/challenges.ts'
import { httpsUrl } from './machine-document.ts'
import { sayList, sayWhen } from './values.ts'

type MakeFinding<F extends DoctorFinding> = (check: string, ok: boolean, message: string, remedy?: string) => F

/** What `doctor` finds of pages over HTTPS: where they are, who certifies them, what DNS says of their names. */
export async function httpsFindings<F extends DoctorFinding>(app: App, finding: MakeFinding<F>): Promise<F[]> {
  const { settings } = app
  if (settings.https.length === 0) return [finding('https', true, 'BERTH_HTTPS is off: no page is shown to anybody')]
  return [
    ...(await certificateFindings(app, finding)),
    ...(settings.domain.includes('.') ? await nameFindings(app, finding) : []),
    ...(settings.dns.length > 0 ? [await delegationFinding(app, finding)] : []),
  ]
}

async function certificateFindings<F extends DoctorFinding>(app: App, finding: MakeFinding<F>): Promise<F[]> {
  const { settings, sql } = app
  // Renewed at two thirds of their life; half of the rest is over of one that was not.
  const [late] = await sql<{ count: number }[]>`
    select (select count(*) from certificates where now() > renew_at + (not_after - renew_at) / 2)::int
      + (select count(*) from acme_certificates where now() > renew_at + (not_after - renew_at) / 2)::int as count`
  const count = late?.count ?? 0
  const overdue = finding(
    'certificates',
    count === 0,
    count === 0 ? 'no certificate is overdue' : `${count} certificates were not renewed in time`,
    'the gateway renews them by itself; its log says why it could not',
  )
  const where = `pages are at ${httpsUrl(settings, 'NAME')}`
  if (settings.acme === undefined) {
    const root = `${settings.dataDirectory}/ca.pem`
    const trust = `browsers trust them once they have ${root}. On Debian: cp ${root} /usr/local/share/ca-certificates/berth.crt && update-ca-certificates`
    return [finding('https', true, `${where}, with certificates of Berth's own authority; ${trust}`), overdue]
  }
  const from = new URL(settings.acme).host
  if (!settings.domain.includes('.')) {
    return [
      finding(
        'https',
        false,
        `BERTH_ACME is set, and ${settings.domain} is no name that ${from} certifies`,
        'set BERTH_DOMAIN to a name that points at this server',
      ),
    ]
  }
  const rows = await sql<{ name: string; held: boolean; problem: string | null; tryAt: Date }[]>`
    select name, coalesce(not_after > now(), false) as held, problem, try_at as "tryAt" from acme_certificates
    where domain is null order by name`
  const wildcard =
    settings.dns.length > 0
      ? []
      : [
          finding(
            'wildcard',
            false,
            `machines' names have certificates of Berth's own authority: ${from} certifies them together, which it asks DNS for`,
            'set BERTH_DNS and let DNS lead _acme-challenge here; see Certificates in the README',
          ),
        ]
  return [
    ...rows.map(({ name, held, problem, tryAt }) =>
      finding(
        'https',
        problem === null,
        `${name} ${held ? 'has' : 'waits for'} a certificate of ${from}${problem === null ? '' : `: ${problem}; tried again ${sayWhen(tryAt)}`}`,
        'what it says is usually about DNS, or about ports 80 and 443 not leading here',
      ),
    ),
    ...wildcard,
    overdue,
  ]
}

async function nameFindings<F extends DoctorFinding>(app: App, finding: MakeFinding<F>): Promise<F[]> {
  const { settings, lookup } = app
  const names = [settings.domain, `any.${settings.machineDomain}`]
  const own = publicAddresses(settings)
  return await Promise.all(
    names.map(async (name) => {
      const remedy = `let ${name.replace(/^any\./, '*.')} point at ${sayList(own)}`
      try {
        const found = await lookup.addresses(name)
        return finding(
          'names',
          found.length > 0,
          `${name} ${found.length > 0 ? `is at ${sayList(found)}` : 'is not in DNS'}`,
          remedy,
        )
      } catch (error) {
        return finding('names', false, error instanceof Error ? error.message : String(error), remedy)
      }
    }),
  )
}

/** Asks the rest of the world for a record that only this name server has. */
async function delegationFinding<F extends DoctorFinding>(app: App, finding: MakeFinding<F>): Promise<F> {
  const { sql, lookup, settings } = app
  const name = challengeName(settings.domain.toLowerCase())
  const value = `doctor-${randomBytes(16).toString('hex')}`
  const close = await openChallenges(sql, [{ kind: 'dns-01', name, value }])
  try {
    const isHere = (await lookup.txt(name).catch((): string[] => [])).includes(value)
    return finding(
      'dns',
      isHere,
      isHere ? `DNS leads ${name} to this name server` : `DNS does not lead ${name} to this name server`,
      `in the zone of ${settings.domain}: ${name} NS ns1.${settings.domain}, and that name's address; port 53 must lead here, UDP and TCP`,
    )
  } finally {
    await close()
  }
}
