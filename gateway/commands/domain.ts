import { publicAddresses } from '../dns/addresses.ts'
import { isProved, whereItPoints } from '../domains/check.ts'
import { LookupError } from '../domains/lookup.ts'
import { DomainNameError, readDomain } from '../domains/name.ts'
import { proofNames, type WantedRecord, wantedRecords } from '../domains/records.ts'
import {
  accountProof,
  type CustomDomain,
  DomainError,
  dropDomain,
  giveDomain,
  holderOf,
  listDomains,
} from '../domains/rows.ts'
import type { Machine } from '../machines.ts'
import type { Settings } from '../settings.ts'
import { type Context, defineCommand } from './command.ts'
import { machineNames } from './complete.ts'
import { CommandError, usageError } from './error.ts'
import { reachable, recordEvent } from './machine-steps.ts'
import { harmless, table } from './text.ts'
import { sayWhen, shown } from './values.ts'
import { controlUrl } from './web-links.ts'

const name = { label: 'NAME', complete: machineNames } as const

export const domainAdd = defineCommand({
  name: 'domain add',
  group: 'web',
  onMachines: true,
  summary: 'show a machine under a domain of your own',
  description:
    'It is accepted when DNS holds a record of your account; otherwise the records to set are printed, and the same line once they are set does it. The records stay good whatever the machine is called. Said again, it looks again.',
  flags: { wildcard: { type: 'boolean', summary: 'every name one label below DOMAIN too' } },
  arguments: { name, domain: { label: 'DOMAIN' } },
  examples: ['domain add demo www.example.com', 'domain add demo example.com --wildcard'],
  async run(context, { flags, args }) {
    const { app, caller } = context
    const { settings, sql, lookup } = app
    const machine = await own(context, args.name)
    const claim = { domain: domainOf(args.domain, settings), wildcard: flags.wildcard ?? false }
    const { domain, wildcard } = claim
    if (wildcard && settings.acme !== undefined && settings.dns.length === 0) {
      throw new CommandError('domain.no_wildcards', 1, 'there are no certificates for wildcards here', {
        wayOn: 'the operator switches them on with BERTH_DNS',
      })
    }
    const names = proofNames(await accountProof(sql, caller.accountId), settings)
    const addresses = publicAddresses(settings)
    const isDelegated = settings.acme !== undefined && settings.dns.length > 0
    const wanted = wantedRecords({ domain, wildcard, isDelegated }, names, addresses)
    context.progress.show(`looking up ${domain}`)
    if (!(await asked(() => isProved(claim, names, lookup)))) throw unproved(domain, wanted)
    const holder = await holderOf(sql, domain)
    const isOthers = holder !== undefined && holder.accountId !== caller.accountId
    // Of two accounts that DNS knows the one that has the domain keeps it; one that DNS knows no more has lost it.
    const from =
      isOthers &&
      !(await asked(() => isProved({ domain, wildcard: holder.wildcard }, proofNames(holder.proof, settings), lookup)))
        ? holder.machineId
        : undefined
    await told(domain, () =>
      giveDomain(sql, { domain, wildcard, machineId: machine.id, accountId: caller.accountId, from }, (tx) =>
        recordEvent(tx, caller, 'domain.added', machine, { domain, wildcard }),
      ),
    )
    const { isHere, elsewhere } = await asked(() => whereItPoints(claim, names, lookup, addresses))
    const url = urlOf(settings, domain)
    const pointing = elsewhere.length > 0 ? `points at ${elsewhere.slice(0, 3).join(', ')}` : 'points nowhere yet'
    return {
      json: {
        vm_name: machine.name,
        domain,
        wildcard,
        https_url: url,
        points_here: isHere,
        ...(isHere ? {} : { records: wanted.records }),
      },
      text: isHere
        ? `${url} shows ${machine.name}${settings.acme === undefined ? '' : '; its certificate is on its way, domain ls says how far'}\n`
        : `${domain} belongs to ${machine.name}, but ${pointing}\n${recordsText(wanted)}\n`,
    }
  },
})

export const domainLs = defineCommand({
  name: 'domain ls',
  aliases: ['domain list'],
  group: 'web',
  onMachines: true,
  summary: 'your own domains, and how their certificates stand',
  arguments: { name: { ...name, optional: true } },
  async run(context, { args }) {
    const { app, caller } = context
    controlUrl(app.settings)
    const machines = args.name === undefined ? await app.machines.list(caller) : [await own(context, args.name)]
    const domains = await listDomains(
      app.sql,
      machines.map(({ id }) => id),
    )
    return {
      json: { domains: domains.map((one) => documentOf(one, app.settings)) },
      text: (view) =>
        domains.length === 0
          ? 'no domain of your own; to add one: domain add NAME DOMAIN\n'
          : table<CustomDomain>(
              domains,
              [
                { title: 'domain', value: (one) => (one.wildcard ? `${one.domain}, *.${one.domain}` : one.domain) },
                { title: 'machine', value: (one) => one.machineName },
                { title: 'added', value: (one) => sayWhen(one.addedAt), optional: 1 },
                { title: 'certificate', value: (one) => certificateText(one, app.settings), flexible: true },
              ],
              view,
            ),
    }
  },
})

export const domainRm = defineCommand({
  name: 'domain rm',
  aliases: ['domain remove'],
  group: 'web',
  onMachines: true,
  summary: 'show the machine there no longer; then another may have the domain',
  arguments: { name, domain: { label: 'DOMAIN' } },
  async run(context, { args }) {
    const { app, caller } = context
    const machine = await own(context, args.name)
    const domain = domainOf(args.domain, app.settings)
    await app.sql.begin(async (tx) => {
      if (!(await dropDomain(tx, machine.id, domain))) {
        throw new CommandError('domain.not_found', 3, `${domain} does not belong to ${machine.name}`, {
          wayOn: 'domain ls shows what belongs to which',
        })
      }
      await recordEvent(tx, caller, 'domain.removed', machine, { domain })
    })
    return {
      json: { vm_name: machine.name, domain, removed: true },
      text: `${domain} leads to ${machine.name} no more; take its records out of DNS\n`,
    }
  },
})

/** @throws CommandError also where HTTPS is off: nothing could be shown anywhere */
async function own({ app, caller }: Context, typed: string): Promise<Machine> {
  controlUrl(app.settings)
  return await reachable(app, caller, typed)
}

function domainOf(typed: string, settings: Settings): string {
  try {
    return readDomain(typed, settings)
  } catch (error) {
    if (!(error instanceof DomainNameError)) throw error
    throw usageError(`${shown(typed)} ${error.message}`, 'domain add demo www.example.com')
  }
}

function urlOf({ https }: Settings, domain: string): string {
  const port = https[0]?.port ?? 443
  return `https://${domain}${port === 443 ? '' : `:${port}`}`
}

function unproved(domain: string, wanted: ReturnType<typeof wantedRecords>): CommandError {
  return new CommandError('domain.unproved', 1, `DNS does not show that ${domain} is yours`, {
    wayOn: `${recordsText(wanted)}\nThen the same again.`,
    detail: { domain, records: wanted.records, records_instead: wanted.instead },
  })
}

function recordsText({ records, instead }: ReturnType<typeof wantedRecords>): string {
  const lines = (wanted: readonly WantedRecord[]) => {
    const widest = Math.max(...wanted.map((one) => one.name.length))
    return wanted.map(
      ({ name, type, value }) =>
        `  ${name.padEnd(widest)}  ${type.padEnd(5)}  ${type === 'TXT' ? `"${value}"` : value}`,
    )
  }
  return [
    'Set in DNS:',
    ...lines(records),
    'or, where a name heads its zone and can have no CNAME:',
    ...lines(instead),
  ].join('\n')
}

function certificateText({ notAfter, failures, problem, tryAt }: CustomDomain, { acme }: Settings): string {
  if (acme === undefined) return 'of Berth’s own authority'
  const held = notAfter && notAfter > new Date() ? `good until ${notAfter.toISOString().slice(0, 10)}` : undefined
  if (failures === 0) return held ?? 'on its way'
  const trouble = `${harmless(problem ?? 'failed')}; tried again ${tryAt && tryAt > new Date() ? sayWhen(tryAt) : 'now'}`
  return held === undefined ? `none: ${trouble}` : `${held}, not renewed: ${trouble}`
}

function documentOf(one: CustomDomain, settings: Settings) {
  return {
    domain: one.domain,
    vm_name: one.machineName,
    wildcard: one.wildcard,
    https_url: urlOf(settings, one.domain),
    added_at: one.addedAt.toISOString(),
    certificate: {
      expires_at: one.notAfter?.toISOString() ?? null,
      failures: one.failures,
      problem: one.problem,
      next_try_at: one.failures > 0 ? (one.tryAt?.toISOString() ?? null) : null,
    },
  }
}

async function asked<T>(look: () => Promise<T>): Promise<T> {
  try {
    return await look()
  } catch (error) {
    if (error instanceof LookupError) throw new CommandError('domain.dns', 1, error.message, { cause: error })
    throw error
  }
}

async function told<T>(domain: string, step: () => Promise<T>): Promise<T> {
  try {
    return await step()
  } catch (error) {
    if (!(error instanceof DomainError)) throw error
    const { machineName } = error
    throw new CommandError(error.code, error.code === 'domain.taken' ? 1 : 5, error.message, {
      cause: error,
      ...(machineName === undefined ? {} : { wayOn: `to give it to another: domain rm ${machineName} ${domain}` }),
    })
  }
}
