/**
 * A recursive resolver for tests: it has the zones of people who bring domains, asks Berth's own name server for what
 * is Berth's, and follows CNAMEs from the ones to the other. Nothing else exists.
 */
import { Resolver } from 'node:dns/promises'
import { pino } from 'pino'
import type { Listen } from '../../settings.ts'
import { openDatagrams } from '../../start/datagrams.ts'
import { openListeners } from '../../start/listeners.ts'
import { addressRecord, type DnsRecord, nameRecord, type Query, RCODE, TYPE, txtRecord } from '../message.ts'
import { serveDns } from '../server.ts'

export type TestRecords = { cname?: string; txt?: string[]; a?: string[]; ns?: string[] }

export type TestResolver = {
  /** `127.0.0.1:port` */
  address: string
  /** sets what a name has, in place of what it had; `*.` stands for names that have nothing of their own */
  set(name: string, records: TestRecords): void
  clear(): void
  /** what Berth's name server is asked for */
  zones: Set<string>
  /** names that are not answered (SERVFAIL) */
  broken: Set<string>
  /** questions asked, `name type` */
  asked: string[]
  [Symbol.asyncDispose](): Promise<void>
}

const CNAMES_MOST = 8

/**
 * @param berth zones that Berth's name server has, and where it listens
 * @param listen a port of the system's choice on loopback unless given
 */
export async function startResolver(
  berth: { zones: readonly string[]; port: () => number },
  listen: Listen = { host: '127.0.0.1', port: 0 },
): Promise<TestResolver> {
  const records = new Map<string, TestRecords>()
  const asked: string[] = []
  const broken = new Set<string>()
  const zones = new Set(berth.zones)

  const ofBerth = async (name: string, type: number): Promise<DnsRecord[]> => {
    const resolver = new Resolver({ timeout: 1000, tries: 2 })
    resolver.setServers([`127.0.0.1:${berth.port()}`])
    try {
      if (type === TYPE.TXT) return (await resolver.resolveTxt(name)).map((parts) => txtRecord(parts.join(''), 1))
      if (type === TYPE.A) return (await resolver.resolve4(name)).map((address) => addressRecord(address, 1))
      return []
    } catch {
      return []
    }
  }
  const find = async (question: string, type: number): Promise<DnsRecord[]> => {
    const answers: DnsRecord[] = []
    let name = question
    for (let step = 0; step < CNAMES_MOST; step++) {
      const at = (record: DnsRecord): DnsRecord => ({ ...record, name })
      const isBerths = [...zones].some((zone) => name === zone || name.endsWith(`.${zone}`))
      if (isBerths) return [...answers, ...(await ofBerth(name, type)).map(at)]
      const found = records.get(name) ?? records.get(name.replace(/^[^.]+/, '*'))
      if (type === TYPE.TXT) answers.push(...(found?.txt ?? []).map((text) => at(txtRecord(text, 1))))
      if (type === TYPE.A) answers.push(...(found?.a ?? []).map((address) => at(addressRecord(address, 1))))
      if (type === TYPE.NS) answers.push(...(found?.ns ?? []).map((server) => at(nameRecord(TYPE.NS, server, 1))))
      if (found?.cname === undefined) return answers
      answers.push(at(nameRecord(TYPE.CNAME, found.cname, 1)))
      if (type === TYPE.CNAME) return answers
      name = found.cname
    }
    return answers
  }
  const server = serveDns({
    udp: await openDatagrams('the test', [listen]),
    tcp: await openListeners('the test', [listen], { allowHalfOpen: true }),
    log: pino({ level: 'silent' }),
    async answer({ name, type }: Query) {
      asked.push(`${name} ${type}`)
      if (broken.has(name)) return { rcode: RCODE.serverFailure, authoritative: false, answers: [], authority: [] }
      return { rcode: RCODE.noError, authoritative: false, answers: await find(name, type), authority: [] }
    },
  })
  return {
    address: `127.0.0.1:${server.udpAddresses[0]?.port}`,
    set: (name, what) => records.set(name, what),
    clear: () => records.clear(),
    zones,
    broken,
    asked,
    [Symbol.asyncDispose]: () => server.close(),
  }
}
