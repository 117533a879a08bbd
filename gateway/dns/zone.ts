/**
 * What Berth's name server answers. It has these names, and the machines' addresses are all its own:
 *
 *     DOMAIN, MACHINE-DOMAIN        SOA, NS, A, AAAA
 *     ns1.DOMAIN                    A, AAAA: the name server itself
 *     NAME.MACHINE-DOMAIN           A, AAAA, for every NAME of one label: whether there is such a machine is said by
 *                                   its page, so that a `new` need not wait for somebody's memory of "no such name"
 *     TARGET.custom.MACHINE-DOMAIN  A, AAAA: what people's own domains point at by CNAME
 *     _acme-challenge.DOMAIN        TXT while an order is open; so below MACHINE-DOMAIN
 *     LABEL._acme-challenge.DOMAIN  TXT: where people's own _acme-challenge leads by CNAME
 *     _acme-challenge.X             TXT while there is one, where X handed it to this server by NS
 *
 * Each _acme-challenge is a zone, so that it can be handed to this server alone while the domain stays elsewhere.
 * Everything else is refused: nothing is looked up for anybody, nothing is handed on, no zone is given away whole.
 */
import { randomInt } from 'node:crypto'
import {
  addressRecord,
  anyRecord,
  CLASS_IN,
  type DnsRecord,
  nameRecord,
  type Query,
  RCODE,
  type Reply,
  soaRecord,
  TYPE,
  txtRecord,
} from './message.ts'

export const CHALLENGE_LABEL = '_acme-challenge'
/** `<proof>.custom.<machine domain>` */
export const CUSTOM_LABEL = 'custom'
const ADDRESS_TTL_S = 300
const ZONE_TTL_S = 3600
/** A name that was just made must not be missed for long. */
const NEGATIVE_TTL_S = 15
/** A challenge's next value is another one. */
const CHALLENGE_TTL_S = 1

export type ZoneOptions = {
  domain: string
  machineDomain: string
  /** where the gateways are reached, IPv4 and IPv6 */
  addresses: readonly string[]
  /**
   * Values of the TXT records at a name, read from the database after the call.
   * @throws when the database does not answer
   */
  challenges(name: string): Promise<readonly string[]>
}

/** @returns what answers a query; rejects when the database does not answer */
export function zone(options: ZoneOptions): (query: Query) => Promise<Reply> {
  const domain = options.domain.toLowerCase()
  const machineDomain = options.machineDomain.toLowerCase()
  const primary = `ns1.${domain}`
  // The longer one first: one of the two may lie in the other.
  const zones = [...new Set([domain, machineDomain])].sort((a, b) => b.length - a.length)
  const addresses = options.addresses.map((address) => addressRecord(address, ADDRESS_TTL_S))
  const soa = (apex: string): DnsRecord =>
    soaRecord(
      apex,
      { primary, mailbox: `hostmaster.${domain}`, serial: 1, negativeTtlS: NEGATIVE_TTL_S },
      NEGATIVE_TTL_S,
    )
  const found = (answers: readonly DnsRecord[], apex: string): Reply => ({
    rcode: RCODE.noError,
    authoritative: true,
    answers,
    authority: answers.length > 0 ? [] : [soa(apex)],
  })
  const missing = (apex: string): Reply => ({
    rcode: RCODE.noSuchName,
    authoritative: true,
    answers: [],
    authority: [soa(apex)],
  })
  const ofApex = (apex: string, type: number): readonly DnsRecord[] => {
    if (type === TYPE.SOA) return [{ ...soa(apex), ttlS: ZONE_TTL_S }]
    return type === TYPE.NS ? [nameRecord(TYPE.NS, primary, ZONE_TTL_S)] : []
  }
  const ofHost = (type: number): readonly DnsRecord[] =>
    type === TYPE.A || type === TYPE.AAAA ? rotated(addresses.filter((record) => record.type === type)) : []
  const ofChallenge = async (name: string, type: number): Promise<readonly DnsRecord[]> =>
    type === TYPE.TXT ? (await options.challenges(name)).map((value) => txtRecord(value, CHALLENGE_TTL_S)) : []

  const inZone = async (apex: string, rest: string, { name, type }: Query): Promise<Reply> => {
    const challengeZone = `${CHALLENGE_LABEL}.${apex}`
    if (rest === CHALLENGE_LABEL) {
      const own = ofApex(challengeZone, type)
      return found(own.length > 0 ? own : await ofChallenge(name, type), challengeZone)
    }
    if (rest.endsWith(`.${CHALLENGE_LABEL}`)) {
      if (!isLabel(rest.slice(0, -CHALLENGE_LABEL.length - 1))) return missing(challengeZone)
      return found(await ofChallenge(name, type), challengeZone)
    }
    if (rest === '') return found([...ofApex(apex, type), ...ofHost(type)], apex)
    const target = rest.endsWith(`.${CUSTOM_LABEL}`) ? rest.slice(0, -CUSTOM_LABEL.length - 1) : rest
    const exists = apex === machineDomain ? isLabel(target) : rest === 'ns1'
    return exists ? found(ofHost(type), apex) : missing(apex)
  }

  return async (query) => {
    const { name, type } = query
    if (query.class !== CLASS_IN || type === TYPE.AXFR || type === TYPE.IXFR) return REFUSED
    const apex = zones.find((candidate) => name === candidate || name.endsWith(`.${candidate}`))
    if (apex === undefined) {
      if (!name.startsWith(`${CHALLENGE_LABEL}.`)) return REFUSED
      const answers = await ofChallenge(name, TYPE.TXT)
      if (answers.length === 0) return REFUSED
      if (type === TYPE.ANY) return found([anyRecord(CHALLENGE_TTL_S)], name)
      return found(type === TYPE.TXT ? answers : ofApex(name, type), name)
    }
    const reply = await inZone(apex, name.slice(0, -apex.length - 1), query)
    if (type !== TYPE.ANY || reply.rcode !== RCODE.noError) return reply
    return found([anyRecord(ADDRESS_TTL_S)], apex)
  }
}

const REFUSED: Reply = { rcode: RCODE.refused, authoritative: false, answers: [], authority: [] }

function isLabel(text: string): boolean {
  return /^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/.test(text)
}

/** Clients take the first address: each gets its turn. */
function rotated<T>(items: readonly T[]): readonly T[] {
  if (items.length < 2) return items
  const first = randomInt(items.length)
  return [...items.slice(first), ...items.slice(0, first)]
}
