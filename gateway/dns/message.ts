/**
 * The part of the DNS protocol that an authoritative server speaks: one question in, records out. Written for packets
 * from strangers: what is read is the header, one question, and whether the asker speaks EDNS; nothing else of a query
 * is looked at. Names are kept as labels, so that a dot inside a label never becomes a separator.
 * @see RFC 1035, 4; RFC 6891 (EDNS); RFC 2181, 9 (truncation)
 */
import { isIPv4, isIPv6 } from 'node:net'

export const TYPE = {
  A: 1,
  NS: 2,
  CNAME: 5,
  SOA: 6,
  HINFO: 13,
  TXT: 16,
  AAAA: 28,
  OPT: 41,
  IXFR: 251,
  AXFR: 252,
  ANY: 255,
} as const
export const CLASS_IN = 1
export const RCODE = {
  noError: 0,
  formatError: 1,
  serverFailure: 2,
  noSuchName: 3,
  notImplemented: 4,
  refused: 5,
  badVersion: 16,
} as const

export type Query = {
  id: number
  recursionDesired: boolean
  /** lower case, joined by dots, no last dot; the root is empty. A dot inside a label is `\\046` */
  name: string
  type: number
  class: number
  /** the question's bytes, which the response repeats in the case that they came in (RFC 4343, 4.1) */
  question: Buffer
  /** undefined: the asker does not speak EDNS */
  edns: { udpBytes: number; version: number } | undefined
}

/** A query that cannot be answered in substance, with what is needed to say so. */
export type Unanswerable = { id: number; opcode: number; recursionDesired: boolean; rcode: number }

export type DnsRecord = {
  /** the question's own name unless given */
  name?: string
  type: number
  ttlS: number
  /** RDATA */
  bytes: Buffer
}

export type Reply = {
  rcode: number
  authoritative: boolean
  answers: readonly DnsRecord[]
  authority: readonly DnsRecord[]
}

const HEADER_BYTES = 12
const NAME_BYTES = 255
const LABEL_BYTES = 63
/** Without EDNS (RFC 1035, 4.2.1), and what fits into one packet on every path with it (DNS flag day 2020). */
const PLAIN_UDP_BYTES = 512
export const EDNS_UDP_BYTES = 1232
/** Records behind the question that are looked through for an OPT: one is usual, a signature may be beside it. */
const ADDITIONAL_MOST = 4

/**
 * Reads a query.
 * @returns undefined for what gets no answer at all: responses (two servers would answer each other for ever) and
 *   what is too short to have an id
 */
export function readQuery(bytes: Buffer): Query | Unanswerable | undefined {
  if (bytes.length < HEADER_BYTES) return undefined
  const id = bytes.readUInt16BE(0)
  const flags = bytes.readUInt16BE(2)
  if (flags & 0x8000) return undefined
  const opcode = (flags >> 11) & 0xf
  const recursionDesired = (flags & 0x100) !== 0
  const unanswerable = (rcode: number): Unanswerable => ({ id, opcode, recursionDesired, rcode })
  if (opcode !== 0) return unanswerable(RCODE.notImplemented)
  const [questions, answers, authorities, additional] = [4, 6, 8, 10].map((at) => bytes.readUInt16BE(at))
  if (questions !== 1 || answers !== 0 || authorities !== 0) return unanswerable(RCODE.formatError)
  const name = readLabels(bytes, HEADER_BYTES)
  if (!name || name.end + 4 > bytes.length) return unanswerable(RCODE.formatError)
  const edns = readOpt(bytes, name.end + 4, additional ?? 0)
  if (edns === null) return unanswerable(RCODE.formatError)
  return {
    id,
    recursionDesired,
    name: name.text,
    type: bytes.readUInt16BE(name.end),
    class: bytes.readUInt16BE(name.end + 2),
    question: Buffer.from(bytes.subarray(HEADER_BYTES, name.end + 4)),
    edns,
  }
}

/** What is said to a query that could not be read: the header alone. */
export function writeRefusal({ id, opcode, recursionDesired, rcode }: Unanswerable): Buffer {
  const bytes = Buffer.alloc(HEADER_BYTES)
  bytes.writeUInt16BE(id, 0)
  bytes.writeUInt16BE(0x8000 | (opcode << 11) | (recursionDesired ? 0x100 : 0) | rcode, 2)
  return bytes
}

/**
 * Writes a response. One that is longer than the limit is sent without records and with TC, so that the asker comes
 * again by TCP.
 * @param limitBytes of the transport
 */
export function writeReply(query: Query, reply: Reply, limitBytes: number): Buffer {
  const whole = assemble(query, reply, false)
  return whole.length <= limitBytes ? whole : assemble(query, { ...reply, answers: [], authority: [] }, true)
}

/** How long a response may be that goes back by UDP. */
export function udpLimit({ edns }: Query): number {
  if (!edns) return PLAIN_UDP_BYTES
  return Math.min(Math.max(edns.udpBytes, PLAIN_UDP_BYTES), EDNS_UDP_BYTES)
}

/** An A or AAAA record. */
export function addressRecord(address: string, ttlS: number): DnsRecord {
  if (isIPv4(address)) return { type: TYPE.A, ttlS, bytes: Buffer.from(address.split('.').map(Number)) }
  return { type: TYPE.AAAA, ttlS, bytes: ipv6Bytes(address) }
}

/** @param text cut into strings of at most 255 bytes */
export function txtRecord(text: string, ttlS: number): DnsRecord {
  const bytes = Buffer.from(text)
  const parts: Buffer[] = []
  for (let at = 0; at === 0 || at < bytes.length; at += 255) {
    const part = bytes.subarray(at, at + 255)
    parts.push(Buffer.from([part.length]), part)
  }
  return { type: TYPE.TXT, ttlS, bytes: Buffer.concat(parts) }
}

/** A record whose RDATA is one name. */
export function nameRecord(type: typeof TYPE.NS | typeof TYPE.CNAME, name: string, ttlS: number): DnsRecord {
  return { type, ttlS, bytes: writeName(name) }
}

export type Soa = { primary: string; mailbox: string; serial: number; negativeTtlS: number }

/** @see RFC 1035, 3.3.13; RFC 2308, 4: the last field is how long "no such thing" is remembered */
export function soaRecord(name: string, soa: Soa, ttlS: number): DnsRecord {
  const numbers = Buffer.alloc(20)
  for (const [index, value] of [soa.serial, 3600, 600, 86_400, soa.negativeTtlS].entries())
    numbers.writeUInt32BE(value, index * 4)
  return {
    name,
    type: TYPE.SOA,
    ttlS,
    bytes: Buffer.concat([writeName(soa.primary), writeName(soa.mailbox), numbers]),
  }
}

/** The whole of what an ANY query gets (RFC 8482, 4.2): nobody is made to send much to a third party. */
export function anyRecord(ttlS: number): DnsRecord {
  const cpu = Buffer.from('RFC8482')
  return { type: TYPE.HINFO, ttlS, bytes: Buffer.concat([Buffer.from([cpu.length]), cpu, Buffer.from([0])]) }
}

/** @param name as a `Query` has it @returns wire form, without compression */
function writeName(name: string): Buffer {
  const labels = name === '' ? [] : name.split('.').map((label) => Buffer.from(label, 'latin1'))
  const bytes = Buffer.concat([...labels.flatMap((label) => [Buffer.from([label.length]), label]), Buffer.from([0])])
  if (labels.some(({ length }) => length === 0 || length > LABEL_BYTES) || bytes.length > NAME_BYTES) {
    throw new RangeError(`not a domain name: ${name}`)
  }
  return bytes
}

function assemble(query: Query, { rcode, authoritative, answers, authority }: Reply, truncated: boolean): Buffer {
  const header = Buffer.alloc(HEADER_BYTES)
  header.writeUInt16BE(query.id, 0)
  header.writeUInt16BE(
    0x8000 |
      (authoritative ? 0x400 : 0) |
      (truncated ? 0x200 : 0) |
      (query.recursionDesired ? 0x100 : 0) |
      (rcode & 0xf),
    2,
  )
  const counts = [1, answers.length, authority.length, query.edns ? 1 : 0]
  for (const [index, count] of counts.entries()) header.writeUInt16BE(count, 4 + index * 2)
  const records = [...answers, ...authority].map(writeRecord)
  return Buffer.concat([header, query.question, ...records, ...(query.edns ? [writeOpt(rcode)] : [])])
}

function writeRecord({ name, type, ttlS, bytes }: DnsRecord): Buffer {
  // 0xc00c points at the question's name (RFC 1035, 4.1.4).
  const owner = name === undefined ? Buffer.from([0xc0, HEADER_BYTES]) : writeName(name)
  const head = Buffer.alloc(10)
  head.writeUInt16BE(type, 0)
  head.writeUInt16BE(CLASS_IN, 2)
  head.writeUInt32BE(ttlS, 4)
  head.writeUInt16BE(bytes.length, 8)
  return Buffer.concat([owner, head, bytes])
}

/** @see RFC 6891, 6.1.3: the upper bits of the response code are here */
function writeOpt(rcode: number): Buffer {
  const bytes = Buffer.alloc(11)
  bytes.writeUInt16BE(TYPE.OPT, 1)
  bytes.writeUInt16BE(EDNS_UDP_BYTES, 3)
  bytes.writeUInt8(rcode >> 4, 5)
  return bytes
}

/** A name without compression, as a question's is. @returns undefined when it is none */
function readLabels(bytes: Buffer, from: number): { text: string; end: number } | undefined {
  const labels: string[] = []
  let at = from
  for (;;) {
    const length = bytes[at]
    if (length === undefined || length > LABEL_BYTES) return undefined
    at += 1
    if (length === 0) break
    if (at + length > bytes.length || at + length + 1 - from > NAME_BYTES) return undefined
    const label = bytes.toString('latin1', at, at + length)
    labels.push(label.replace(/[A-Z]/g, (letter) => letter.toLowerCase()).replace(/[.\\]/g, escaped))
    at += length
  }
  return { text: labels.join('.'), end: at }
}

/** As master files write it (RFC 1035, 5.1), so that the only dots in a name are those between labels. */
function escaped(character: string): string {
  return `\\0${character.charCodeAt(0)}`
}

/** @returns null when the records make no sense */
function readOpt(bytes: Buffer, from: number, count: number): Query['edns'] | null {
  if (count > ADDITIONAL_MOST) return null
  let at = from
  let edns: Query['edns']
  for (let index = 0; index < count; index++) {
    const owner = skipName(bytes, at)
    if (owner === undefined || owner + 10 > bytes.length) return null
    const type = bytes.readUInt16BE(owner)
    if (type === TYPE.OPT) {
      // Two of them are an error, and so is one that belongs to a name (RFC 6891, 6.1.1).
      if (edns || owner !== at + 1) return null
      edns = { udpBytes: bytes.readUInt16BE(owner + 2), version: bytes.readUInt8(owner + 5) }
    }
    at = owner + 10 + bytes.readUInt16BE(owner + 8)
    if (at > bytes.length) return null
  }
  return edns
}

/** Where a name ends; it is not followed where it is compressed. */
function skipName(bytes: Buffer, from: number): number | undefined {
  for (let at = from; ; ) {
    const length = bytes[at]
    if (length === undefined || at - from > NAME_BYTES) return undefined
    if (length === 0) return at + 1
    if (length >= 0xc0) return at + 2
    if (length > LABEL_BYTES) return undefined
    at += length + 1
  }
}

function ipv6Bytes(address: string): Buffer {
  if (!isIPv6(address)) throw new RangeError(`not an IP address: ${address}`)
  // The URL parser writes every form, an embedded IPv4 address included, in groups (WHATWG URL, 3.5).
  const [head = '', tail] = new URL(`http://[${address.replace(/%.*$/, '')}]/`).hostname.slice(1, -1).split('::')
  const left = head === '' ? [] : head.split(':')
  const right = tail === undefined || tail === '' ? [] : tail.split(':')
  const zeros = Array<string>(8 - left.length - right.length).fill('0')
  const bytes = Buffer.alloc(16)
  for (const [index, group] of [...left, ...zeros, ...right].entries())
    bytes.writeUInt16BE(Number.parseInt(group, 16), index * 2)
  return bytes
}
