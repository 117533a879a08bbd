import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { connect, type Socket } from 'node:net'
import { join } from 'node:path'
import ssh2 from 'ssh2'
import { describe, expect, it } from 'vitest'
import { startTestGateway, type TestGateway } from '../../test/gateway.ts'
import { addKey } from '../accounts/keys.ts'
import { parseKeyLine } from '../accounts/public-key.ts'
import { AddressLimits, addressGroup, DEFAULT_LIMITS, plainAddress } from './limits.ts'
import { ED25519, SoftwareAuthenticator, serveAgent } from './software-authenticator.ts'

/** A client that is no SSH client. */
async function dial(gateway: TestGateway, from = '127.0.0.1'): Promise<Socket> {
  const socket = connect({ host: '127.0.0.1', port: gateway.port, localAddress: from })
  socket.on('error', () => {})
  await once(socket, 'connect')
  return socket
}

/** All that the gateway sends until it closes the connection. */
async function readAll(socket: Socket): Promise<string> {
  let text = ''
  for await (const chunk of socket) text += chunk.toString('latin1')
  return text
}

const limited = (limits: Partial<typeof DEFAULT_LIMITS>) => new AddressLimits({ ...DEFAULT_LIMITS, ...limits })

describe('the places of connections that are not signed in', () => {
  it('are bounded for each address, with a sentence', () => {
    const limits = limited({ startupsPerAddress: 2 })
    const first = limits.admit('192.0.2.1', () => {})
    limits.admit('192.0.2.1', () => {})
    expect(limits.admit('192.0.2.1', () => {})).toBe(
      'Berth: too many connections from your address are not signed in yet; try again in a moment',
    )
    expect(typeof limits.admit('192.0.2.2', () => {})).toBe('object')
    if (typeof first === 'object') first.end()
    expect(typeof limits.admit('192.0.2.1', () => {})).toBe('object')
    limits.close()
  })

  it('cannot be held by one address against another: the oldest of the crowd makes room', () => {
    const limits = limited({ startups: 4, startupsPerAddress: 4 })
    const dropped: string[] = []
    for (let n = 0; n < 4; n++) limits.admit('192.0.2.1', () => dropped.push(`crowd ${n}`))
    expect(typeof limits.admit('192.0.2.2', () => dropped.push('other'))).toBe('object')
    expect(dropped).toEqual(['crowd 0'])
    expect(limits.admit('192.0.2.1', () => {})).toBe(
      'Berth: too many people are signing in right now; try again in a moment',
    )
    limits.close()
  })

  it('are given back once, however often a connection ends', () => {
    const limits = limited({ startupsPerAddress: 1, startups: 2 })
    for (let n = 0; n < 10; n++) {
      const place = limits.admit('192.0.2.1', () => {})
      if (typeof place === 'string') throw new Error(place)
      place.end()
      place.end()
    }
    limits.close()
  })

  it('cost more after failures', () => {
    const limits = limited({ connectionBurst: 10, connectionsPerSecond: 0.5, failureCost: 5 })
    limits.failed('192.0.2.1')
    limits.failed('192.0.2.1')
    expect(limits.admit('192.0.2.1', () => {})).toBe('Berth: too many connections from your address; try again in 2 s')
    expect(typeof limits.admit('192.0.2.2', () => {})).toBe('object')
    limits.close()
  })
})

describe('an address', () => {
  it('is an IPv4 address or the /64 of an IPv6 one', () => {
    expect(plainAddress('::ffff:192.0.2.1')).toBe('192.0.2.1')
    expect(addressGroup('::ffff:192.0.2.1')).toBe('192.0.2.1')
    expect(addressGroup('2001:db8:1:2:3:4:5:6')).toBe('2001:db8:1:2::/64')
    expect(addressGroup('2001:db8:1:2::9')).toBe('2001:db8:1:2::/64')
    expect(addressGroup('2001:db8::1')).toBe('2001:db8:0:0::/64')
    expect(addressGroup('::1')).toBe('0:0:0:0::/64')
    expect(addressGroup('fe80::1%eth0')).toBe('fe80:0:0:0::/64')
  })
})

describe('refusals that people read', () => {
  it('come before any key exchange, in every client’s own words', async () => {
    await using gateway = await startTestGateway({ limits: { startupsPerAddress: 1 } })
    const holder = await dial(gateway)
    await once(holder, 'data')
    const result = await gateway.ssh({ command: ['ls'] })
    expect(result.status).toBe(255)
    expect(result.stderr).toContain(
      'Berth: too many connections from your address are not signed in yet; try again in a moment',
    )
    const closed = once(holder, 'close')
    holder.destroy()
    await closed
  })

  it('come to those who were admitted and have to make room', async () => {
    await using gateway = await startTestGateway({ limits: { startups: 2 } })
    const crowd = [await dial(gateway), await dial(gateway)]
    const [first] = crowd
    if (!first) throw new Error('no socket')
    const text = readAll(first)
    const other = await dial(gateway, '127.0.0.2')
    expect(await text).toContain('Berth: others wait to sign in, and your address had the most connections waiting')
    for (const socket of [...crowd, other]) socket.destroy()
  })

  it('come when the whole server is full', async () => {
    await using gateway = await startTestGateway({ limits: { connections: 1 } })
    const holder = await dial(gateway)
    await once(holder, 'data')
    expect((await gateway.ssh({ command: ['ls'] })).stderr).toContain('Berth: the server has too many connections')
    holder.destroy()
  })

  it('come after too many failed signatures, and the address is slowed down', async () => {
    await using gateway = await startTestGateway({
      limits: { failedSignatures: 1, connectionBurst: 3, connectionsPerSecond: 0.01, failureCost: 5 },
    })
    const device = await withDevice(gateway)
    const path = join(gateway.directory, 'agent')
    await using _agent = await serveAgent(path, device, { flags: 0 })
    const args = ['-o', `IdentityAgent=${path}`, '-i', '/dev/null']
    const first = await gateway.ssh({ args, command: ['ls'] })
    expect(first).toMatchObject({
      status: 255,
      stderr: expect.stringContaining('Berth: too many failed signatures on one connection'),
    })
    expect((await gateway.ssh({ command: ['ls'] })).stderr).toContain(
      'Berth: too many connections from your address; try again in',
    )
  })

  it('come to an address that makes the database look for keys which no account has, each once a connection', async () => {
    // One connection and two keys cost 3 of 4: OpenSSH comes back to the first key when nobody has the second either.
    await using gateway = await startTestGateway({
      limits: { connectionBurst: 4, connectionsPerSecond: 0.001, unknownKeyCost: 1 },
    })
    const keys = ['a', 'b'].flatMap((name) => ['-i', gateway.makeKey(name)])
    const visit = () => gateway.ssh({ args: ['-o', 'IdentitiesOnly=yes', ...keys], command: ['ls'] })
    expect((await visit()).status).toBe(4)
    expect((await visit()).status).toBe(4)
    expect(await visit()).toMatchObject({
      status: 255,
      stderr: expect.stringContaining('Berth: too many connections from your address; try again in'),
    })
  })

  it('come to whoever takes too long to sign in', async () => {
    await using gateway = await startTestGateway({ limits: { loginGraceMs: 1000 } })
    const device = await withDevice(gateway)
    const path = join(gateway.directory, 'agent')
    await using _agent = await serveAgent(path, device, { delayMs: 1500 })
    const result = await gateway.ssh({ args: ['-o', `IdentityAgent=${path}`, '-i', '/dev/null'], command: ['ls'] })
    expect(result).toMatchObject({ status: 255, stderr: expect.stringContaining('Berth: nobody signed in within 1 s') })
  })

  it('come to a sign-in that the database does not answer, and say so', async () => {
    await using gateway = await startTestGateway({ limits: { lookUpMs: 500, loginGraceMs: 20_000 } })
    const key = gateway.makeKey('owner')
    await gateway.addAccount({ keys: [key] })
    await gateway.database.as('owner').begin(async (tx) => {
      await tx`lock table keys in access exclusive mode`
      expect(await gateway.ssh({ key, command: ['whoami'] })).toMatchObject({
        status: 255,
        stderr: expect.stringContaining('Berth: the database does not answer; try again in a moment'),
      })
    })
    expect((await gateway.ssh({ key, command: ['whoami'] })).status).toBe(0)
  })

  it('come to an unknown key that holds its connection, and count it as a stranger until then', async () => {
    const hang = async () => await new Promise<number>(() => {})
    await using gateway = await startTestGateway({
      lobby: { runLine: hang, runLobby: hang },
      limits: { signUpMs: 1500, startupsPerAddress: 1 },
    })
    const key = gateway.makeKey('stranger')
    const first = gateway.ssh({ key, args: ['-N'] })
    await expect.poll(() => gateway.server.connectionCount).toBe(1)
    // Signed in, but not a member: the place stays taken.
    await expect
      .poll(async () => (await gateway.ssh({ key, command: ['ls'] })).stderr)
      .toContain('are not signed in yet')
    expect((await first).stderr).toContain('Berth: the sign-up took too long')
    expect((await gateway.ssh({ key, command: ['ls'] })).status).toBe(4)
  })

  it('come to a suspended account that holds its connection, and count it as a stranger until then', async () => {
    await using gateway = await startTestGateway({ limits: { suspendedMs: 1500, startupsPerAddress: 1 } })
    const key = gateway.makeKey('id')
    const account = await gateway.addAccount({ keys: [key] })
    await gateway.sql`update accounts set suspended_at = now() where id = ${account}`
    const first = gateway.ssh({ key, args: ['-N'] })
    await expect.poll(() => gateway.server.connectionCount).toBe(1)
    await expect
      .poll(async () => (await gateway.ssh({ key, command: ['ls'] })).stderr)
      .toContain('are not signed in yet')
    expect((await first).stderr).toContain('Berth: this account is suspended; ask whoever runs localhost')
    await expect.poll(() => gateway.server.connectionCount).toBe(0)
  })

  it('come to an account that has many connections when few are left, which are for those that have few', async () => {
    const hang = async () => await new Promise<number>(() => {})
    await using gateway = await startTestGateway({
      lobby: { runLine: hang, runLobby: hang },
      limits: { connections: 6, reservedConnections: 3, fewConnections: 1 },
    })
    const [greedy, modest] = [gateway.makeKey('greedy'), gateway.makeKey('modest')]
    await gateway.addAccount({ keys: [greedy] })
    await gateway.addAccount({ keys: [modest] })
    const held = []
    for (let count = 1; count <= 3; count++) {
      held.push(gateway.ssh({ key: greedy, command: ['wait'] }))
      await expect.poll(() => gateway.server.signedInCount).toBe(count)
    }
    expect(await gateway.ssh({ key: greedy, command: ['wait'] })).toMatchObject({
      status: 255,
      stderr: expect.stringContaining('Berth: the server is nearly full, and this account has 3 connections'),
    })
    held.push(gateway.ssh({ key: modest, command: ['wait'] }))
    await expect.poll(() => gateway.server.signedInCount).toBe(4)
    await gateway.sql`delete from keys`
    await Promise.all(held)
  })

  it('come to an account that has too many connections', async () => {
    const hang = async () => await new Promise<number>(() => {})
    await using gateway = await startTestGateway({
      lobby: { runLine: hang, runLobby: hang },
      limits: { connectionsPerAccount: 1 },
    })
    const key = gateway.makeKey('id')
    await gateway.addAccount({ keys: [key] })
    const first = gateway.ssh({ key, command: ['wait'] })
    await expect.poll(() => gateway.server.signedInCount).toBe(1)
    expect(await gateway.ssh({ key, command: ['ls'] })).toMatchObject({
      status: 255,
      stderr: expect.stringContaining('Berth: this account has too many connections'),
    })
    await gateway.sql`delete from keys`
    await first
  })
})

/** An account whose key is a software authenticator's. */
async function withDevice(gateway: TestGateway): Promise<SoftwareAuthenticator> {
  const device = new SoftwareAuthenticator(ED25519)
  const line = parseKeyLine(`${ED25519} ${device.blob.toString('base64')} token@laptop`)
  await addKey(gateway.sql, await gateway.addAccount(), line)
  return device
}

describe('a client that does not behave', () => {
  it('is cut off when it says nothing, says too little too slowly, or never signs in', async () => {
    await using gateway = await startTestGateway({ limits: { handshakeMs: 400, loginGraceMs: 800 } })
    const silent = await dial(gateway)
    expect(await readAll(silent)).toMatch(/^SSH-2\.0-Berth\r\n[\s\S]*Berth: the key exchange took too long/)

    const slow = await dial(gateway)
    const drip = setInterval(() => slow.write('S'), 50)
    expect(await readAll(slow)).toContain('Berth: the key exchange took too long')
    clearInterval(drip)

    const stalled = await dial(gateway)
    stalled.write('SSH-2.0-stalled\r\n')
    expect(await readAll(stalled)).toContain('Berth: the key exchange took too long')
    await expect.poll(() => gateway.server.connectionCount).toBe(0)
  })

  it.each([
    ['nothing but zeros', Buffer.alloc(100_000)],
    ['an HTTP request', Buffer.from('GET / HTTP/1.1\r\nHost: x\r\n\r\n')],
    ['a line without an end', Buffer.from('x'.repeat(1_000_000))],
    ['an old protocol', Buffer.from('SSH-1.5-old\r\n')],
    ['a packet of 4 GiB', Buffer.concat([Buffer.from('SSH-2.0-x\r\n'), Buffer.alloc(64, 0xff)])],
    [
      'a malformed packet',
      Buffer.concat([Buffer.from('SSH-2.0-x\r\n'), Buffer.from('0000000c0a14', 'hex'), Buffer.alloc(64)]),
    ],
  ])('sending %s harms nobody else', async (_name, bytes) => {
    await using gateway = await startTestGateway({ limits: { handshakeMs: 2000 } })
    const key = gateway.makeKey('id')
    await gateway.addAccount({ keys: [key] })
    const socket = await dial(gateway)
    socket.write(bytes)
    const reading = readAll(socket).catch(() => '')
    expect((await gateway.ssh({ key, command: ['ls'] })).status).toBe(0)
    await reading
    await expect.poll(() => gateway.server.connectionCount).toBe(0)
  })

  it.each([
    ['too long', 'x'.repeat(300)],
    ['holding a zero byte', 'a\0b'],
  ])('giving a user name %s is told so', async (_name, username) => {
    await using gateway = await startTestGateway()
    const key = gateway.makeKey('id')
    await gateway.addAccount({ keys: [key] })
    const client = new ssh2.Client()
    const failed = new Promise<string>((resolve) => client.once('error', (error) => resolve(error.message)))
    client.connect({ host: '127.0.0.1', port: gateway.port, username, privateKey: readFileSync(key) })
    expect(await failed).toBe('Berth: that is no user name')
    client.end()
  })

  it('breaking off at any moment leaves nothing behind', async () => {
    await using gateway = await startTestGateway()
    const key = gateway.makeKey('id')
    await gateway.addAccount({ keys: [key] })
    const hello = Buffer.from('SSH-2.0-gone\r\n')
    for (let n = 0; n < 60; n++) {
      const socket = await dial(gateway)
      if (n % 3 !== 0) socket.write(hello.subarray(0, n % hello.length))
      if (n % 2 === 0) socket.resetAndDestroy()
      else socket.destroy()
    }
    await expect.poll(() => gateway.server.connectionCount).toBe(0)
    expect((await gateway.ssh({ key, command: ['ls'] })).status).toBe(0)
  })
})
