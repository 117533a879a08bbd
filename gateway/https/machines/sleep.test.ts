import { once } from 'node:events'
import type { Duplex } from 'node:stream'
import { connect as connectTls } from 'node:tls'
import { describe, expect, it } from 'vitest'
import { cannotRestore } from '../../../migrations/schema.ts'
import { bringBack, putToSleep, refuseWhenWanted, wakeWhenWanted } from '../../activity/testing/sleeper.ts'
import { cookieOf, type Site, startSite } from '../testing/site.ts'

const PATIENT = { timeout: 60_000, interval: 10 }

/** A WebSocket's handshake with the machine; what is sent behind it comes back. */
const echo = {
  upgrade(_request: unknown, socket: Duplex) {
    socket.write('HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n')
    socket.pipe(socket)
  },
}

async function webSocket(site: Site, cookie: string) {
  const socket = connectTls({ host: '127.0.0.1', port: site.port, servername: 'demo.localhost', ca: site.ca })
  await once(socket, 'secureConnect')
  const lines = [
    ...['GET /ws HTTP/1.1', `Host: demo.localhost:${site.port}`, 'Connection: Upgrade', 'Upgrade: websocket'],
    ...['Sec-WebSocket-Version: 13', 'Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==', `Origin: ${site.machine()}`],
    `Cookie: ${cookie}`,
  ]
  socket.write(`${lines.join('\r\n')}\r\n\r\n`)
  let text = ''
  socket.on('error', () => {})
  socket.on('data', (bytes) => {
    text += bytes.toString('latin1')
  })
  return { socket, until: (part: string) => expect.poll(() => text, PATIENT).toContain(part) }
}

const wakings = async ({ sql }: Site) =>
  (await sql`select detail ->> 'because' as because from events where kind = 'machine.woken'`).map((row) => row.because)

/** And the gateway has heard of it: before, a machine that falls asleep still answers. */
async function asleep({ sql, machineId, gateway }: Site, desired?: 'asleep' | 'paused'): Promise<void> {
  const watch = gateway.app.watches.of(machineId)
  await putToSleep(sql, machineId, desired)
  await expect.poll(() => watch.isHeld, PATIENT).toBe(true)
}

describe('a machine that sleeps', () => {
  it('is woken by a request, which is held until it answers; once, however many come', async () => {
    await using site = await startSite()
    const browser = await site.signedIn()
    await browser.get(site.machine())
    await using sleeper = await wakeWhenWanted(site.sql, site.machineId)
    await asleep(site)
    const sending = { mode: 'cors', headers: { cookie: cookieOf(browser) } } as const
    const answers = await Promise.all(
      Array.from({ length: 20 }, (_, n) => site.browser().get(`${site.machine()}/${n}`, sending)),
    )
    expect(answers.map(({ text }) => text)).toEqual(answers.map((_, n) => `machine says GET /${n}`))
    expect([sleeper.wakes, await wakings(site)]).toEqual([1, ['a web request']])
    const noted = async () => (await site.sql`select what from machine_activity`).map(({ what }) => what)
    await expect.poll(noted, PATIENT).toEqual(['https'])
  })

  it('whose server has no memory for it answers that, and when to come again', async () => {
    await using site = await startSite()
    const browser = await site.signedIn()
    await browser.get(site.machine())
    await using _sleeper = await refuseWhenWanted(site.sql, site.machineId, 'Its server has no memory left for it')
    await asleep(site)
    await expect.poll(async () => (await browser.get(site.machine())).status, PATIENT).toBe(503)
    const answer = await browser.get(site.machine())
    expect(answer).toMatchObject({ status: 503, text: expect.stringContaining('demo cannot wake now') })
    expect(answer.headers['retry-after']).toBe('30')
    expect(answer.text).toContain('This page looks again by itself.')
    expect(answer.text).toContain('<meta http-equiv="refresh" content="30">')
    const told = await browser.get(site.machine(), { mode: 'cors', headers: { accept: 'application/json' } })
    expect(JSON.parse(told.text).error).toBe('demo cannot wake now: Its server has no memory for it at the moment.')
  })

  it('whose server cannot restore it answers that, and to whom it says why', async () => {
    await using site = await startSite()
    const browser = await site.signedIn()
    await browser.get(site.machine())
    await using _sleeper = await refuseWhenWanted(
      site.sql,
      site.machineId,
      'Its memory was saved by QEMU 8.2',
      cannotRestore,
    )
    await asleep(site)
    await expect.poll(async () => (await browser.get(site.machine())).status, PATIENT).toBe(503)
    const told = await browser.get(site.machine(), { mode: 'cors', headers: { accept: 'application/json' } })
    expect([told.status, told.headers['retry-after']]).toEqual([503, '30'])
    expect(JSON.parse(told.text)).toMatchObject({
      code: 'machine.cannot_restore',
      error: 'demo cannot wake now: Its server cannot restore its memory. Its owner sees why with: why demo',
    })
  })

  it('with a body on its way is given all of it', async () => {
    await using site = await startSite({ origin: (request, response) => request.pipe(response) })
    const browser = await site.signedIn()
    await browser.get(site.machine())
    await using _sleeper = await wakeWhenWanted(site.sql, site.machineId)
    await asleep(site)
    const body = 'long '.repeat(100_000)
    const headers = { 'content-length': String(body.length) }
    const answer = await browser.send(site.machine(), {
      method: 'POST',
      body,
      headers,
      from: site.machine(),
      mode: 'cors',
    })
    expect([answer.status, answer.text.length, answer.text === body]).toEqual([200, body.length, true])
  })

  it('is not woken by whoever may not come in', async () => {
    await using site = await startSite()
    await asleep(site)
    expect((await site.browser().get(site.machine(), { mode: 'cors' })).status).toBe(401)
    await site.browser().get(site.machine())
    const stranger = await site.signedIn(await site.account('other@example.com'))
    await stranger.get(site.machine())
    expect(await wakings(site)).toEqual([])
  })

  it('shows a person who would wait long that it wakes, and looks again by itself', async () => {
    await using site = await startSite()
    const browser = await site.signedIn()
    await browser.get(site.machine())
    await asleep(site)
    const page = await browser.get(site.machine())
    expect([page.status, page.headers['retry-after']]).toEqual([503, '2'])
    expect(page.text).toContain('<h1>demo is waking</h1>')
    expect(page.text).toContain('<meta http-equiv="refresh" content="2">')
    expect(page.text.length).toBeLessThan(10_000)
    expect(await wakings(site)).toEqual(['a web request'])
  })

  it('that does not wake, or shall not, says so: 503, and when to come again where that may help', async () => {
    await using site = await startSite()
    const browser = await site.signedIn()
    await browser.get(site.machine())
    await asleep(site)
    await using _sleeper = await wakeWhenWanted(site.sql, site.machineId, async () => {
      await site.sql`update machines set observed_state = 'failed', observed_reason = 'its disk is gone'
        where id = ${site.machineId}`
    })
    const asked = { mode: 'cors', headers: { accept: 'application/json' } } as const
    const failed = await browser.get(site.machine(), asked)
    expect([failed.status, failed.headers['retry-after']]).toEqual([503, '30'])
    expect(JSON.parse(failed.text)).toMatchObject({ code: 'machine.failed' })
    await asleep(site, 'paused')
    const paused = await browser.get(site.machine(), asked)
    expect([paused.status, paused.headers['retry-after']]).toEqual([503, undefined])
    expect(JSON.parse(paused.text)).toMatchObject({
      code: 'machine.paused',
      error: 'demo is paused: Its owner wakes it with: resume demo',
    })
  })
})

describe('a WebSocket', () => {
  it('wakes its machine, stays when it sleeps again, and wakes it by the next message', async () => {
    await using site = await startSite(echo)
    const browser = await site.signedIn()
    await browser.get(site.machine())
    await using sleeper = await wakeWhenWanted(site.sql, site.machineId)
    await asleep(site)
    const live = await webSocket(site, cookieOf(browser))
    await live.until('101 Switching Protocols')
    live.socket.write('one ')
    await live.until('one ')
    await asleep(site)
    expect(live.socket.destroyed).toBe(false)
    live.socket.write('two')
    await live.until('one two')
    expect([sleeper.wakes, await wakings(site)]).toEqual([2, ['a WebSocket', 'a WebSocket']])
    live.socket.destroy()
  })

  it('lives through a sleep that was over before the gateway saw it', async () => {
    await using site = await startSite(echo)
    const browser = await site.signedIn()
    await browser.get(site.machine())
    const live = await webSocket(site, cookieOf(browser))
    live.socket.write('one ')
    await live.until('one ')
    const { generation } = site.gateway.app.watches.of(site.machineId)
    await site.sql.begin(async (sql) => {
      await putToSleep(sql as never, site.machineId)
      await sql`update machines set desired_state = 'running' where id = ${site.machineId}`
      await bringBack(sql as never, site.machineId)
    })
    await expect.poll(() => site.gateway.app.watches.of(site.machineId).generation, PATIENT).toBeGreaterThan(generation)
    // Whoever follows the machine has read its row when one who asks anew is answered.
    await expect.poll(async () => (await browser.get(site.machine())).status, PATIENT).toBe(200)
    live.socket.write('two')
    await live.until('one two')
    live.socket.destroy()
  })

  it('ends when its machine is stopped while it sleeps', async () => {
    await using site = await startSite(echo)
    const browser = await site.signedIn()
    await browser.get(site.machine())
    const live = await webSocket(site, cookieOf(browser))
    await live.until('101 Switching Protocols')
    await asleep(site)
    await site.sql`update machines set desired_state = 'stopped', observed_state = 'stopped'`
    await expect.poll(() => live.socket.destroyed, PATIENT).toBe(true)
  })
})
