import { execFile } from 'node:child_process'
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { type AddressInfo, connect, type Socket } from 'node:net'
import { promisify } from 'node:util'
import { pino } from 'pino'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { random } from '../commands/testing/random.ts'
import { openDatagrams } from '../start/datagrams.ts'
import { openListeners } from '../start/listeners.ts'
import { publicAddresses } from './addresses.ts'
import { type DnsServer, serveDns } from './server.ts'
import { zone } from './zone.ts'

const execFileAsync = promisify(execFile)
const LIMITS = { pending: 50, connections: 10, connectionsPerAddress: 6, pipelined: 5, idleMs: 2_000 }

const open = new Map<string, string[]>()
let server: DnsServer
let udp: AddressInfo
let tcp: AddressInfo
/** what look-ups of challenges wait for */
let gate: Promise<void> = Promise.resolve()
let lookedUp = 0

beforeAll(async () => {
  const loopback = [{ host: '127.0.0.1', port: 0 }]
  server = serveDns({
    udp: await openDatagrams('BERTH_DNS', loopback),
    tcp: await openListeners('BERTH_DNS', loopback, { allowHalfOpen: true }),
    log: pino({ level: 'silent' }),
    limits: LIMITS,
    answer: zone({
      domain: 'Berth.test',
      machineDomain: 'machines.berth.test',
      addresses: ['192.0.2.1', '192.0.2.2', '2001:db8::1'],
      async challenges(name) {
        lookedUp++
        await gate
        return open.get(name) ?? []
      },
    }),
  })
  udp = server.udpAddresses[0] as AddressInfo
  tcp = server.tcpAddresses[0] as AddressInfo
})
afterAll(() => server?.close())

/** The real dig. @returns status, flags and the answer's lines, sorted, without their TTL */
async function dig(...question: string[]) {
  const port = question.includes('+tcp') ? tcp.port : udp.port
  const parameters = ['@127.0.0.1', '-p', String(port), '+tries=1', '+time=5', '+norecurse', ...question]
  const { stdout } = await execFileAsync('dig', parameters)
  const section = (title: string) =>
    (new RegExp(`;; ${title} SECTION:\n(.*?)\n\n`, 's').exec(stdout)?.[1] ?? '')
      .split('\n')
      .filter((line) => line !== '' && !line.startsWith(';'))
      .map((line) => line.split(/\s+/).toSpliced(1, 2).join(' '))
      .sort()
  return {
    status: /status: (\w+)/.exec(stdout)?.[1],
    flags: /flags: ([^;]*);/.exec(stdout)?.[1],
    answer: section('ANSWER'),
    authority: section('AUTHORITY'),
    text: stdout,
  }
}

describe('the name server', () => {
  it('knows the domains, the machines’ names and the targets of people’s domains', async () => {
    const addresses = (name: string) => [`${name} A 192.0.2.1`, `${name} A 192.0.2.2`]
    for (const name of [
      'berth.test.',
      'ns1.berth.test.',
      'demo.machines.berth.test.',
      'ab12.custom.machines.berth.test.',
    ]) {
      expect(await dig(name, 'A')).toMatchObject({ status: 'NOERROR', flags: 'qr aa', answer: addresses(name) })
    }
    expect((await dig('demo.machines.berth.test', 'AAAA')).answer).toEqual([
      'demo.machines.berth.test. AAAA 2001:db8::1',
    ])
    expect((await dig('berth.test', 'NS')).answer).toEqual(['berth.test. NS ns1.berth.test.'])
    expect((await dig('machines.berth.test', 'SOA')).answer[0]).toMatch(
      /^machines\.berth\.test\. SOA ns1\.berth\.test\. /,
    )
    expect((await dig('DEMO--3000.Machines.BERTH.test', 'A', '+tcp')).answer).toEqual(
      addresses('DEMO--3000.Machines.BERTH.test.'),
    )
  })

  it('says of a name without such a record, and of no name, what resolvers may remember for 15 s', async () => {
    const missing = await dig('nobody.berth.test', 'A')
    expect(missing).toMatchObject({ status: 'NXDOMAIN', flags: 'qr aa', answer: [] })
    expect(missing.authority[0]).toMatch(/^berth\.test\. SOA ns1\.berth\.test\. hostmaster\.berth\.test\. .* 15$/)
    expect(await dig('demo.machines.berth.test', 'MX')).toMatchObject({ status: 'NOERROR', answer: [] })
    expect((await dig('deep.demo.machines.berth.test', 'A')).status).toBe('NXDOMAIN')
    expect((await dig('-q', '-x.machines.berth.test', 'A')).status).toBe('NXDOMAIN')
  })

  it('shows challenges while they are open, several at a name, also where another zone handed the name over', async () => {
    open.set('_acme-challenge.berth.test', ['one', 'two'])
    open.set('ab12._acme-challenge.berth.test', ['x'.repeat(300)])
    open.set('_acme-challenge.shop.example', ['theirs'])
    expect((await dig('_acme-challenge.berth.test', 'TXT')).answer).toEqual([
      '_acme-challenge.berth.test. TXT "one"',
      '_acme-challenge.berth.test. TXT "two"',
    ])
    expect((await dig('AB12._acme-challenge.berth.test', 'TXT')).answer[0]?.replace('" "', '')).toContain(
      'x'.repeat(300),
    )
    expect((await dig('_acme-challenge.shop.example', 'TXT')).answer).toEqual([
      '_acme-challenge.shop.example. TXT "theirs"',
    ])
    expect((await dig('_acme-challenge.shop.example', 'SOA')).answer[0]).toMatch(
      /^_acme-challenge\.shop\.example\. SOA/,
    )
    open.clear()
    expect(await dig('_acme-challenge.berth.test', 'TXT')).toMatchObject({ status: 'NOERROR', answer: [] })
    expect(await dig('_acme-challenge.shop.example', 'TXT')).toMatchObject({ status: 'REFUSED' })
  })

  it('refuses what is not its own, transfers and recursion, and gives ANY one small record', async () => {
    for (const question of [['example.com'], ['.', 'NS'], ['berth.test', 'A', '-c', 'CH'], ['xberth.test'], ['test']]) {
      expect(await dig(...question)).toMatchObject({ status: 'REFUSED', answer: [] })
    }
    expect(await dig('example.com', 'A', '+recurse')).toMatchObject({ status: 'REFUSED', flags: 'qr rd' })
    expect((await dig('berth.test', 'AXFR', '+tcp')).text).toContain('Transfer failed')
    expect((await dig('berth.test', 'ANY', '+notcp')).answer).toEqual(['berth.test. HINFO "RFC8482" ""'])
  })

  it('speaks EDNS version 0, with and without it, and says so of other versions', async () => {
    expect((await dig('berth.test', '+edns=0', '+noednsnegotiation')).text).toContain(
      'EDNS: version: 0, flags:; udp: 1232',
    )
    expect((await dig('berth.test', '+noedns')).text).not.toContain('OPT PSEUDOSECTION')
    expect((await dig('berth.test', '+edns=7', '+noednsnegotiation')).status).toBe('BADVERS')
  })

  it('cuts a UDP answer that is too long, and gives it whole by TCP', async () => {
    open.set(
      '_acme-challenge.berth.test',
      Array.from({ length: 10 }, (_, index) => `${index}`.repeat(200)),
    )
    const cut = await dig('_acme-challenge.berth.test', 'TXT', '+ignore')
    expect(cut).toMatchObject({ flags: 'qr aa tc', answer: [] })
    expect((await dig('_acme-challenge.berth.test', 'TXT', '+tcp')).answer).toHaveLength(10)
    open.clear()
  })

  it('says SERVFAIL where the database does not answer, and goes on with what needs none', async () => {
    const failing = serveDns({
      udp: await openDatagrams('BERTH_DNS', [{ host: '127.0.0.1', port: 0 }]),
      tcp: [],
      log: pino({ level: 'silent' }),
      answer: zone({
        ...{ domain: 'berth.test', machineDomain: 'berth.test', addresses: ['192.0.2.1'] },
        challenges: () => Promise.reject(new Error('the database is away')),
      }),
    })
    const port = String(failing.udpAddresses[0]?.port)
    const status = async (name: string, type: string) =>
      /status: (\w+)/.exec((await execFileAsync('dig', ['@127.0.0.1', '-p', port, '+tries=1', name, type])).stdout)?.[1]
    expect(await status('_acme-challenge.berth.test', 'TXT')).toBe('SERVFAIL')
    expect(await status('demo.berth.test', 'A')).toBe('NOERROR')
    await failing.close()
  })
})

/** A query's bytes. */
function query(
  name: string,
  { id = 7, type = 1, tail = Buffer.alloc(0), counts = [1, 0, 0, 0], flags = 0 } = {},
): Buffer {
  const header = Buffer.alloc(12)
  header.writeUInt16BE(id, 0)
  header.writeUInt16BE(flags, 2)
  for (const [index, count] of counts.entries()) header.writeUInt16BE(count, 4 + index * 2)
  const labels = name.split('.').filter((label) => label !== '')
  const question = Buffer.concat([
    ...labels.map((label) => Buffer.concat([Buffer.from([label.length]), Buffer.from(label, 'latin1')])),
    Buffer.from([0, 0, type, 0, 1]),
  ])
  return Buffer.concat([header, question, tail])
}

/** Sends datagrams, then a question that has an answer; @returns the answers that came before that one's, by id */
async function told(datagrams: readonly Buffer[]): Promise<Map<number, Buffer>> {
  const socket = createSocket('udp4')
  const answers = new Map<number, Buffer>()
  const done = new Promise<void>((resolve) => {
    socket.on('message', (bytes) => {
      if (bytes.readUInt16BE(0) === 0xffff) resolve()
      else answers.set(bytes.readUInt16BE(0), bytes)
    })
  })
  for (const bytes of datagrams) socket.send(bytes, udp.port, '127.0.0.1')
  socket.send(query('berth.test', { id: 0xffff }), udp.port, '127.0.0.1')
  await done
  socket.close()
  return answers
}

const rcodeOf = (bytes: Buffer | undefined) => (bytes ? bytes.readUInt16BE(2) & 0xf : undefined)

describe('hostile packets', () => {
  it('get FORMERR, NOTIMP or nothing: never an answer to an answer, never a name by a pointer', async () => {
    const loop = Buffer.concat([query('', { id: 3 }).subarray(0, 12), Buffer.from([0xc0, 12, 0, 1, 0, 1])])
    const opt = Buffer.from([0, 0, 41, 0x10, 0, 0, 0, 0, 0, 0, 0])
    const answers = await told([
      Buffer.alloc(0),
      Buffer.from([0, 1]),
      query('berth.test', { id: 1, flags: 0x8000 }),
      query('berth.test', { id: 2, counts: [2, 0, 0, 0] }),
      loop,
      query('berth.test', { id: 4 }).subarray(0, 18),
      query('berth.test', { id: 5, counts: [1, 0, 0, 1] }),
      query('berth.test', { id: 6, counts: [1, 0, 0, 65535], tail: opt }),
      query('berth.test', { id: 8, counts: [1, 0, 0, 2], tail: Buffer.concat([opt, opt]) }),
      query('berth.test', { id: 9, flags: 5 << 11 }),
      query('berth.test', { id: 10, counts: [0, 0, 0, 0] }),
      query(`${'a'.repeat(63)}.`.repeat(5), { id: 11 }),
      query('berth.test', {
        id: 12,
        counts: [1, 0, 0, 1],
        tail: Buffer.from([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0xff, 0xff]),
      }),
    ])
    expect(Object.fromEntries([...answers].map(([id, bytes]) => [id, rcodeOf(bytes)]))).toEqual({
      2: 1,
      3: 1,
      4: 1,
      5: 1,
      6: 1,
      8: 1,
      9: 4,
      10: 1,
      11: 1,
      12: 1,
    })
  })

  it('with a dot or a NUL inside a label are no name of ours', async () => {
    const header = query('', { id: 1 }).subarray(0, 12)
    const dotted = Buffer.concat([header, Buffer.from([10]), Buffer.from('berth.test'), Buffer.from([0, 0, 1, 0, 1])])
    const nul = Buffer.from(query('berth.test', { id: 2 }))
    nul[14] = 0
    const answers = await told([dotted, nul])
    expect([rcodeOf(answers.get(1)), rcodeOf(answers.get(2))]).toEqual([5, 5])
  })

  it('of every kind, ten thousand at random, end nothing', async () => {
    const dice = random(4)
    const seeds = [query('demo.machines.berth.test'), query('_acme-challenge.berth.test', { type: 16 })]
    for (let round = 0; round < 100; round++) {
      const datagrams = Array.from({ length: 100 }, () => {
        const bytes = Buffer.from(seeds[dice(seeds.length)] as Buffer)
        for (let change = dice(6); change >= 0; change--) bytes[dice(bytes.length)] = dice(256)
        if (bytes.readUInt16BE(0) === 0xffff) bytes[0] = 0
        return bytes.subarray(0, dice(8) === 0 ? dice(bytes.length) : bytes.length)
      })
      await told(datagrams)
    }
    expect((await dig('berth.test', 'A')).status).toBe('NOERROR')
  })
})

/** A TCP connection, and what came back on it. */
async function dial(): Promise<{ socket: Socket; received: () => Buffer; closed: Promise<unknown> }> {
  const socket = connect(tcp.port, '127.0.0.1')
  let received = Buffer.alloc(0)
  socket.on('data', (bytes) => {
    received = Buffer.concat([received, bytes])
  })
  socket.on('error', () => {})
  const closed = new Promise((resolve) => socket.once('close', resolve))
  await once(socket, 'connect')
  return { socket, received: () => received, closed }
}

function framed(bytes: Buffer): Buffer {
  return Buffer.concat([Buffer.from([bytes.length >> 8, bytes.length & 0xff]), bytes])
}

const PATIENT = { timeout: 60_000, interval: 10 }

describe('TCP', () => {
  it('answers many queries of one connection, in pieces and at once, also those asked before its end', async () => {
    const { socket, received, closed } = await dial()
    const asked = Array.from({ length: 20 }, (_, id) => framed(query('berth.test', { id })))
    const all = Buffer.concat(asked)
    socket.write(all.subarray(0, 1))
    socket.write(all.subarray(1, 50))
    socket.end(all.subarray(50))
    await closed
    const ids: number[] = []
    for (let at = 0; at < received().length; at += 2 + received().readUInt16BE(at))
      ids.push(received().readUInt16BE(at + 2))
    expect(ids.sort((a, b) => a - b)).toEqual(Array.from({ length: 20 }, (_, id) => id))
  })

  it('is not read from while enough of a connection’s queries are open', async () => {
    const { promise, resolve } = Promise.withResolvers<void>()
    gate = promise
    const { socket, received } = await dial()
    const before = lookedUp
    for (let id = 0; id < 30; id++) socket.write(framed(query('_acme-challenge.berth.test', { id, type: 16 })))
    expect((await dig('berth.test', 'A')).status).toBe('NOERROR')
    expect([lookedUp - before, received().length]).toEqual([LIMITS.pipelined, 0])
    resolve()
    gate = Promise.resolve()
    const count = () => {
      let all = 0
      for (let at = 0; at + 2 <= received().length; at += 2 + received().readUInt16BE(at)) all++
      return all
    }
    await expect.poll(count, PATIENT).toBe(30)
    socket.destroy()
  })

  it('closes connections that are idle, that send no query, and those above the bound', async () => {
    const idle = await dial()
    const chatter = await dial()
    chatter.socket.write(framed(query('berth.test', { flags: 0x8000 })))
    await chatter.closed
    const many = await Promise.all(Array.from({ length: LIMITS.connectionsPerAddress }, () => dial()))
    await Promise.race(many.map(({ closed }) => closed))
    await idle.closed
    for (const { socket } of many) socket.destroy()
    await Promise.all(many.map(({ closed }) => closed))
    await expect.poll(async () => (await dig('berth.test', 'A', '+tcp')).status, PATIENT).toBe('NOERROR')
  })

  it('and UDP together hold a bounded number of queries; the others are told SERVFAIL', async () => {
    const { promise, resolve } = Promise.withResolvers<void>()
    gate = promise
    const datagrams = Array.from({ length: LIMITS.pending + 10 }, (_, id) =>
      query('_acme-challenge.berth.test', { id, type: 16 }),
    )
    const answers = await told(datagrams)
    resolve()
    gate = Promise.resolve()
    expect([...answers.values()].map(rcodeOf)).toEqual(Array(10).fill(2))
  })
})

describe('where the gateways are reached', () => {
  const settings = { addresses: [], https: [{ port: 443 }], network: '10.42.0.0/16' }
  const interfaceOf = (address: string, internal = false) => ({
    ...{ address, internal, netmask: '', mac: '', cidr: null },
    ...(address.includes(':') ? { family: 'IPv6' as const, scopeid: 0 } : { family: 'IPv4' as const }),
  })

  it('is what BERTH_ADDRESSES says, else BERTH_HTTPS, else the public addresses of the server, else its private ones', () => {
    const interfaces = {
      lo: [interfaceOf('127.0.0.1', true)],
      eth0: [interfaceOf('203.0.113.5'), interfaceOf('fe80::1'), interfaceOf('2001:db8::5')],
      vm1: [interfaceOf('10.42.0.1')],
      lan: [interfaceOf('192.168.1.4')],
    }
    expect(publicAddresses({ ...settings, addresses: ['198.51.100.1'] }, interfaces)).toEqual(['198.51.100.1'])
    expect(publicAddresses({ ...settings, https: [{ host: '203.0.113.9', port: 443 }] }, interfaces)).toEqual([
      '203.0.113.9',
    ])
    expect(publicAddresses(settings, interfaces)).toEqual(['203.0.113.5', '2001:db8::5'])
    expect(publicAddresses(settings, { lan: interfaces.lan, vm1: interfaces.vm1 })).toEqual(['192.168.1.4'])
  })
})
