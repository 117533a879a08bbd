import { randomBytes } from 'node:crypto'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { createToken } from '../../accounts/tokens.ts'
import { startWorld, type World } from '../../commands/testing/world.ts'
import { type Asking, Client, decoded } from './testing/client.ts'

const NDJSON = 'application/json, application/x-ndjson'
/** Waits for an event; this long only where the machine running the tests is busy. */
const PATIENT = { timeout: 60_000, interval: 20 }

let world: World
let token: string
const clients: Record<'h1' | 'h2', Client> = {} as typeof clients

beforeAll(async () => {
  world = await startWorld({ sshd: true, https: true })
  for (const protocol of ['h1', 'h2'] as const) clients[protocol] = await Client.of(world, protocol)
  token = await makeToken()
  await world.run('new demo')
})
afterAll(async () => {
  for (const client of Object.values(clients)) client.close()
  await world?.[Symbol.asyncDispose]()
})

async function makeToken(): Promise<string> {
  const { accountId } = world.owner
  return (await createToken(world.gateway.sql, { accountId, label: '', expiresInMs: 600_000 })).token
}

describe.each(['h1', 'h2'] as const)('over %s', (protocol) => {
  const ask = (line: string, asking: Asking = {}) => clients[protocol].json(line, { token, ...asking })
  const run = async (command: string) => {
    const { status, headers, text } = await clients[protocol].post(`ssh demo '${command}'`, { token, accept: NDJSON })
    return { status, type: headers['content-type'], ...decoded(text) }
  }

  it('a line is answered with its document, to a token as Bearer, as password or in a header of its own', async () => {
    const basic = Buffer.from(`anybody:${token}`).toString('base64')
    for (const headers of [
      { authorization: `Bearer ${token}` },
      { authorization: `Basic ${basic}` },
      { 'x-berth-authorization': `Bearer ${token}` },
    ]) {
      const { status, text } = await clients[protocol].post('whoami', { headers })
      expect([status, JSON.parse(text)]).toMatchObject([200, { account: world.owner.accountId, is_owner: true }])
    }
  })

  it('without a good one there is 401 and how to sign in', async () => {
    const { status, headers, text } = await clients[protocol].post('whoami')
    expect([status, JSON.parse(text)]).toMatchObject([401, { code: 'auth.required' }])
    expect(String(headers['www-authenticate'])).toMatch(/Bearer.*Basic/)
    expect(await ask('whoami', { token: `exe1.${'0'.repeat(26)}` })).toMatchObject({ status: 401 })
    expect(await ask('whoami', { token: 'mine' })).toMatchObject({ status: 401 })
  })

  it.each([
    ['an open quote', 'ls "', 400],
    ['an operator', 'ls; whoami', 400],
    ['nothing', '', 400],
    ['an unknown flag', 'ls --colour', 400],
    ['an unknown command', 'frobnicate', 404],
    ['ssh without a command', 'ssh demo', 400],
    ['a name that is taken', 'new demo', 409],
    ['too much memory', 'new --memory 900G', 503],
  ])('%s: refused with a status of its own', async (_what, line, expected) => {
    const { status, document } = await ask(line)
    expect(status).toBe(expected)
    const { way_on: _wayOn, ...rest } = document
    expect(rest).toEqual({ error: expect.any(String), code: expect.any(String) })
  })

  it('a machine that is not there, or off, is told in the words that the SDK knows', async () => {
    expect(await ask('restart nope')).toMatchObject({ status: 422, document: { error: 'VM "nope" not found' } })
    expect(await ask('ssh nope true')).toMatchObject({ status: 422, document: { error: 'VM "nope" not found' } })
    await world.run('new off')
    await world.run('stop off')
    const { status, document } = await ask('ssh off true', { accept: NDJSON })
    expect([status, document.error]).toEqual([422, expect.stringMatching(/^VM "off" is not running/)])
    await world.run('rm --now off')
  })

  it('a body that is no text or too long is refused, one of 64 KiB is not', async () => {
    expect(await ask('', { body: Buffer.from([0x6c, 0xff, 0x73]) })).toMatchObject({ status: 400 })
    expect(await ask('', { body: Buffer.from('ls \0') })).toMatchObject({ status: 400 })
    expect(await ask('ls'.padEnd(65_536))).toMatchObject({ status: 200 })
    expect(await ask('ls'.padEnd(65_537))).toMatchObject({ status: 413 })
    expect(await ask('ls'.padEnd(300_000), { chunked: true })).toMatchObject({ status: 413 })
    expect(await ask('ls')).toMatchObject({ status: 200 })
  })

  it('other methods and pages of other sites are refused', async () => {
    const { status, headers } = await clients[protocol].post('', { token, method: 'GET' })
    expect([status, headers.allow]).toEqual([405, 'POST'])
    for (const headers of [
      { origin: `https://demo.${new URL(clients[protocol].origin).host}` },
      { 'sec-fetch-site': 'same-site' },
      { 'sec-fetch-site': 'cross-site' },
    ]) {
      expect(await ask('whoami', { headers })).toMatchObject({ status: 403 })
    }
    expect(await ask('whoami', { headers: { origin: clients[protocol].origin } })).toMatchObject({ status: 200 })
  })

  it('ssh streams both outputs apart as they come, then the exit status', async () => {
    expect(await run('echo out; echo err >&2; exit 7')).toMatchObject({
      status: 200,
      type: 'application/x-ndjson',
      stdout: Buffer.from('out\n'),
      stderr: Buffer.from('err\n'),
      exit: 7,
    })
    expect(await run('kill -TERM $$')).toMatchObject({ exit: 143 })
    expect((await run('true')).documents).toEqual([{ exit_code: 0 }])
    expect((await run('cat; echo end')).stdout.toString()).toBe('end\n')
    const stream = clients[protocol].start("ssh demo 'echo first; sleep 1000'", { token, accept: NDJSON })
    await stream.until(Buffer.from('first\n').toString('base64'))
    stream.leave()
  })

  it('bytes come through as they are, and no line is longer than 1 MiB', async () => {
    const bytes = randomBytes(3_000_000)
    const file = join(world.gateway.directory, `bytes-${protocol}`)
    writeFileSync(file, bytes)
    const { text } = await clients[protocol].post(`ssh demo 'cat ${file}'`, { token, accept: NDJSON })
    expect(decoded(text).stdout.equals(bytes)).toBe(true)
    expect(Math.max(...text.split('\n').map((line) => line.length))).toBeLessThan(1_048_576)
  })

  it('a process that closes its outputs first is waited for', async () => {
    expect(await run('exec >&- 2>&-; sleep 0.3; exit 3')).toMatchObject({ exit: 3 })
  })

  it('clients that do not take NDJSON get text, and the status in a trailer', async () => {
    const answer = await clients[protocol].post("ssh demo 'echo out; echo err >&2; exit 7'", { token })
    expect(answer).toMatchObject({ status: 200, trailers: { 'x-exe-exit': '7' } })
    expect(answer.headers['content-type']).toMatch(/^text\/plain/)
    expect(answer.text.split('\n').sort()).toEqual(['', 'err', 'out'])
  })

  it('leaving ends the command, and all that it started', async () => {
    const command = 'sleep 1000 & mine=$!; setsid sleep 1000 & echo $mine $! $$; trap "" PIPE TERM; wait; wait'
    const stream = clients[protocol].start(`ssh demo '${command}'`, { token, accept: NDJSON })
    expect(await stream.status).toBe(200)
    await expect.poll(() => stream.text().length, PATIENT).toBeGreaterThan(0)
    const pids = decoded(stream.text()).stdout.toString().trim().split(' ')
    expect(pids.every((pid) => existsSync(`/proc/${pid}`))).toBe(true)
    stream.leave()
    await expect.poll(() => pids.some(isRunning), PATIENT).toBe(false)
  })

  it('a client that does not read stops the command, and costs bounded memory', async () => {
    const count = join(world.gateway.directory, `count-${protocol}`)
    const line = `ssh demo 'n=0; while head -c 65536 /dev/zero; do n=$((n+1)); echo $n > ${count}; done'`
    const stream = clients[protocol].start(line, { token, accept: NDJSON, isPaused: true })
    await stream.status
    const seen = () => (existsSync(count) ? Number(readFileSync(count, 'utf8')) : 0)
    let before = -1
    await expect
      .poll(
        () => {
          const now = seen()
          const stands = now > 0 && now === before
          before = now
          return stands
        },
        { timeout: 60_000, interval: 400 },
      )
      .toBe(true)
    expect(before * 65_536).toBeLessThan(32 * 2 ** 20)
    stream.leave()
  })
})

/** A process that has ended and that nobody has waited for is not. */
function isRunning(pid: string): boolean {
  try {
    return !/\) [ZX] /.test(readFileSync(`/proc/${pid}/stat`, 'utf8'))
  } catch {
    return false
  }
}
