import { once } from 'node:events'
import { existsSync, readFileSync } from 'node:fs'
import { request } from 'node:https'
import type { Socket } from 'node:net'
import { join } from 'node:path'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { WebSocket } from 'ws'
import { cannotRestore } from '../../../migrations/schema.ts'
import { OUTPUT_WINDOW_BYTES } from '../../../web/terminal/protocol.ts'
import { endAllSessions } from '../../accounts/web-sessions.ts'
import { bringBack, putToSleep, refuseWhenWanted, wakeWhenWanted } from '../../activity/testing/sleeper.ts'
import { type HeldStatus, startTerminalWorld, type TerminalWorld } from './testing/world.ts'

const PATIENT = { timeout: 60_000, interval: 20 }
const SECOND_MS = 1000
const PROMPT = /[$#] $/

let world: TerminalWorld
beforeAll(async () => {
  world = await startTerminalWorld()
}, 120_000)
afterAll(() => world?.[Symbol.asyncDispose]())

describe('a held session', () => {
  it('outlives its browser and shows its screen to the next one', async () => {
    const first = await world.open({ session: 'work' })
    await first.shows(PROMPT)
    await first.type('WORD=kept; echo "seen $((40+2))"\r')
    await first.shows(/seen 42/)
    await first.leave()
    await expect.poll(async () => (await heldSession('work'))?.attached, PATIENT).toBe(0)
    const second = await world.open({ session: 'work' })
    await second.shows(/seen 42/)
    await second.type('echo "still $WORD on $TERM $COLORTERM"\r')
    await second.shows(/still kept on xterm-256color truecolor/)
    await second.type('exit 3\r')
    expect(await second.closed()).toBe(1000)
    expect(second.told.at(-1)).toEqual({ state: 'ended', text: 'The program in session work ended with status 3.' })
  })

  it('is seen and typed in by two at once, and has the size of whoever typed or changed it last', async () => {
    const one = await world.open({ session: 'pair', columns: 90, rows: 30 })
    await one.shows(PROMPT)
    await one.type('stty size\r')
    await one.shows(/30 90/)
    const two = await world.open({ session: 'pair' })
    await two.shows(/30 90/)
    await expect.poll(async () => (await heldSession('pair'))?.attached, PATIENT).toBe(2)
    await two.type('echo "both $((1+1))"\r')
    await one.shows(/both 2/)
    one.say({ resize: [71, 19] })
    await expect
      .poll(async () => {
        await one.type('stty size\r')
        return two.text
      }, PATIENT)
      .toMatch(/19 71/)
    // What one of them typed last must have arrived before the other types.
    await one.type('echo "quiet $((1+1))"\r')
    await two.shows(/quiet 2/)
    await two.type('stty size\r')
    await one.shows(/24 80/)
    await Promise.all([one.leave(), two.leave()])
  })

  it('is the same through another gateway, also when the first one ends', async () => {
    const { gateway, control } = await world.another()
    const before = await world.open({ session: 'moved', control })
    await before.shows(PROMPT)
    await before.type('echo "kept $((6*7))"\r')
    await before.shows(/kept 42/)
    const closing = gateway.close(0)
    expect(await before.closed()).toBe(1012)
    await closing
    const after = await world.open({ session: 'moved' })
    await after.shows(/kept 42/)
    await after.leave()
  })
})

describe('only who may', () => {
  it('is let in: pages of the control host, for a person who is signed in, on a machine of theirs', async () => {
    for (const origin of [
      'https://demo.localhost',
      'https://evil.example',
      world.control.replace('https', 'http'),
      false,
    ] as const)
      await expect(world.open({ origin })).rejects.toThrow('403')
    await expect(world.open({ session: '..' })).rejects.toThrow('404')
    await expect(world.open({ session: "x'y" })).rejects.toThrow('404')
    await expect(world.open({ columns: 100_000 })).rejects.toThrow('404')
    const nobody = await world.open({ cookie: '__Host-berth=nobody' })
    expect(await nobody.closed()).toBe(4401)
    const stranger = await world.open({ cookie: await world.signIn(await world.gateway.addAccount()) })
    expect(await stranger.closed()).toBe(1000)
    expect(stranger.told).toEqual([{ state: 'refused', text: 'There is no machine called demo for you.' }])
  })

  it('sees the page, which loads nothing from elsewhere and no more than 150 KB of script', async () => {
    const stranger = await fetchPage('/terminal/demo', { cookie: '' })
    expect(stranger).toMatchObject({ status: 303, headers: { location: '/signin?next=%2Fterminal%2Fdemo' } })
    const other = await world.signIn(await world.gateway.addAccount())
    expect((await fetchPage('/terminal/demo', { cookie: other })).status).toBe(404)
    const page = await fetchPage('/terminal/demo/build')
    expect(page.status).toBe(200)
    expect(page.text).toContain('data-machine="demo" data-session="build"')
    expect(page.headers['content-security-policy']).toMatch(/default-src 'none'; script-src 'self';/)
    expect(page.text).not.toMatch(/<script(?! type="module" src=)|<style|\sstyle=|\son[a-z]+=/)
    const scripts = [
      ...new Set([...page.text.matchAll(/(?:src|href)="(\/assets\/[^"]+)"/g)].map(([, path]) => path ?? '')),
    ]
    let bytes = 0
    for (const path of scripts) {
      const asset = await fetchPage(path, { cookie: '', headers: { 'accept-encoding': 'gzip' } })
      expect([path, asset.status]).toEqual([path, 200])
      expect(asset.headers['cache-control']).toBe('public, max-age=31536000, immutable')
      if (!path.endsWith('.css')) bytes += asset.bytes
    }
    expect(scripts.length).toBeGreaterThan(5)
    expect(bytes).toBeLessThan(150_000)
    expect((await fetchPage('/assets/0123456789abcdef/main.ts')).status).toBe(404)
  })

  it('stays until it is taken away: signing out and suspension end it within a second', async () => {
    const other = await world.gateway.addAccount()
    for (const takeAway of [
      () => endAllSessions(world.gateway.sql, world.ownerId),
      () => world.gateway.sql`update accounts set suspended_at = now() where id = ${world.ownerId}`,
      () => world.gateway.sql`update machines set account_id = ${other} where id = ${world.machineId}`,
    ]) {
      const visitor = await world.open({ session: 'cut', cookie: await world.signIn() })
      await visitor.attached()
      await takeAway()
      const began = performance.now()
      expect(await visitor.closed()).toBe(4403)
      expect(performance.now() - began).toBeLessThan(SECOND_MS)
      const again = await world.open({ session: 'cut', cookie: visitor.cookie })
      expect([4401, 1000]).toContain(await again.closed())
      await world.gateway.sql`update accounts set suspended_at = null`
      await world.gateway.sql`update machines set account_id = ${world.ownerId}`
    }
  })
})

describe('one that is sent away', () => {
  it('types nothing more, also when it does not answer the closing', async () => {
    const cookie = await world.signIn()
    const rude = await openRude('rude', cookie)
    await rude.until('"attached"')
    await endAllSessions(world.gateway.sql, world.ownerId)
    await rude.until(Buffer.of(0x88, 2, 4403 >> 8, 4403 & 0xff))
    const file = join(world.directory, 'typed-late')
    rude.type(`touch ${file}\r`)
    await expect.poll(() => rude.isClosed() || existsSync(file), PATIENT).toBe(true)
    // Typed behind it into the same session: what came before has been done by then.
    const next = await world.open({ session: 'rude', cookie: await world.signIn() })
    await next.attached()
    await next.type('echo "looked $((1+1))"\r')
    await next.shows(/looked 2/)
    expect(existsSync(file)).toBe(false)
    await next.leave()
  })

  it('for what it sent types nothing more either', async () => {
    const rude = await openRude('ruder', await world.signIn())
    await rude.until('"attached"')
    const file = join(world.directory, 'typed-later')
    rude.say('nonsense')
    rude.type(`touch ${file}\r`)
    await expect.poll(() => rude.isClosed() || existsSync(file), PATIENT).toBe(true)
    const next = await world.open({ session: 'ruder', cookie: await world.signIn() })
    await next.attached()
    await next.type('echo "looked $((1+1))"\r')
    await next.shows(/looked 2/)
    expect(existsSync(file)).toBe(false)
    await next.leave()
  })
})

describe('a machine that is off', () => {
  it('is told as such; the page starts it, and the terminal goes on by itself', async () => {
    const { sql } = world.gateway
    const stop = () =>
      sql`update machines set desired_state = 'stopped', observed_state = 'stopped', observed_ready_at = null`
    await stop()
    const cookie = await world.signIn()
    const visitor = await world.open({ session: 'started', cookie })
    await visitor.until(() => visitor.told.length > 0)
    expect(visitor.told).toEqual([
      {
        state: 'off',
        text: 'demo is stopped.',
        wayOn: { verb: 'start', command: expect.stringMatching(/^ssh .*localhost start demo$/) },
      },
    ])
    await sql`update hosts set lease_expires_at = now() + interval '1 hour', cpus = 8, memory_bytes = 68719476736`
    const foreign = await fetchPage('/terminal/demo/start', {
      cookie,
      method: 'POST',
      headers: { origin: 'https://demo.localhost' },
    })
    expect(foreign.status).toBe(403)
    const started = await fetchPage('/terminal/demo/start', { cookie, method: 'POST' })
    expect([started.status, started.text]).toEqual([200, expect.stringContaining('starting')])
    await visitor.until(() => visitor.told.length > 1)
    expect(visitor.told[1]).toMatchObject({ state: 'waiting', text: expect.stringMatching(/^demo is starting: /) })
    await sql`update machines set observed_state = 'running', observed_boot = desired_boot, observed_ready_at = now()`
    await visitor.attached()
    await visitor.shows(PROMPT)
    expect(JSON.parse((await fetchPage('/terminal/demo', { cookie, headers: { accept: '*/*' } })).text)).toMatchObject({
      machine: 'demo',
      sessions: expect.arrayContaining([{ name: 'started', attached: 1 }]),
    })
    await stop()
    expect(await visitor.closed()).toBe(1000)
    expect(visitor.told.at(-1)).toEqual({ state: 'unreachable', text: 'The connection to demo was lost.' })
    await sql`update machines set desired_state = 'running', observed_state = 'running', observed_ready_at = now()`
  })
})

describe('a machine that sleeps', () => {
  it('and cannot be restored is knocked at once, and the terminal says why until it is wanted awake', async () => {
    const { sql } = world.gateway
    const reason = 'Its memory was saved by QEMU 8.2'
    let told = 0
    const visitor = await (async () => {
      await using sleeper = await refuseWhenWanted(sql, world.machineId, reason, cannotRestore)
      await putToSleep(sql, world.machineId)
      const opened = await world.open({ session: 'kept', cookie: await world.signIn() })
      const says = /demo cannot wake now: its memory was .*: restart demo\./
      await opened.until(() => says.test(JSON.stringify(opened.told.at(-1))))
      told = opened.told.length
      // Other news of it are looked at, and it is knocked at no more.
      const looks = vi.spyOn(world.gateway.app.machines, 'byId')
      await sql`update machines set observed_at = now() - interval '1 hour' where id = ${world.machineId}`
      await expect.poll(() => looks.mock.calls.length, PATIENT).toBe(1)
      await sql`update machines set observed_reason = 'Another one' where id = ${world.machineId}`
      await expect.poll(() => looks.mock.calls.length, PATIENT).toBe(2)
      looks.mockRestore()
      expect(sleeper.wakes).toBe(1)
      return opened
    })()
    expect(visitor.told).toHaveLength(told)
    await sql`update machines set desired_state = 'running', observed_reason = null where id = ${world.machineId}`
    await bringBack(sql, world.machineId)
    await visitor.attached()
  })

  it('is woken by who opens a terminal, and by a key in one that was open', async () => {
    const { sql } = world.gateway
    const watch = world.gateway.app.watches.of(world.machineId)
    const asleep = async (desired: 'asleep' | 'paused' = 'asleep') => {
      await putToSleep(sql, world.machineId, desired)
      await expect.poll(() => watch.isHeld, { timeout: 60_000 }).toBe(true)
    }
    const cookie = await world.signIn()
    await asleep('paused')
    const visitor = await world.open({ session: 'woken', cookie })
    await visitor.until(() => visitor.told.length > 0)
    expect(visitor.told[0]).toMatchObject({ state: 'off', text: 'demo is paused.', wayOn: { verb: 'resume' } })
    const resumed = await fetchPage('/terminal/demo/start', { cookie, method: 'POST' })
    expect([resumed.status, resumed.text]).toEqual([200, expect.stringContaining('waking')])
    await visitor.until(() => visitor.told.length > 1)
    expect(visitor.told[1]).toEqual({ state: 'waiting', text: 'demo is waking.' })
    await bringBack(sql, world.machineId)
    await visitor.attached()
    await visitor.shows(PROMPT)

    await using _sleeper = await wakeWhenWanted(sql, world.machineId)
    await asleep()
    await visitor.type('echo "awake $((1+1))"\r')
    await visitor.shows(/awake 2/)
    await asleep()
    const next = await world.open({ session: 'woken', cookie })
    await next.attached()
    await next.leave()
    await visitor.leave()
  })
})

describe('bounds', () => {
  it('a browser that does not read costs no memory and holds up no program, and sees the end when it reads on', async () => {
    const visitor = await world.open({ session: 'flood', silent: true, cookie: await world.signIn() })
    await visitor.shows(PROMPT)
    const before = heldBytes()
    visitor.socket.pause()
    await visitor.type('yes "a line of text that fills the screen"\r')
    // What it was not sent it says to have seen: then only the socket itself bounds what is on the way.
    const lies = setInterval(() => visitor.say({ seen: 1_000_000_000 }), 1)
    await expect.poll(async () => (await heldSession('flood'))?.output_bytes, PATIENT).toBeGreaterThan(60_000_000)
    // What is held on and on is never below it; what is garbage goes some time after it was collected.
    await expect.poll(() => heldBytes() - before, PATIENT).toBeLessThan(5 * 2 ** 20)
    await visitor.type('\x03echo "the $((1+0)) end"\r')
    visitor.socket.resume()
    await visitor.shows(/the 1 end/)
    clearInterval(lies)
    await visitor.leave()
  })

  it('one that reads slowly gets what it says to have room for and no more, in order', async () => {
    const visitor = await world.open({ session: 'slow', silent: true, cookie: await world.signIn() })
    await visitor.shows(PROMPT)
    await visitor.type('seq 1 130000\r')
    await visitor.until(() => visitor.bytes >= OUTPUT_WINDOW_BYTES)
    await expect.poll(async () => (await heldSession('slow'))?.output_bytes, PATIENT).toBeGreaterThan(900_000)
    for (const ping of [1, 2, 3]) {
      visitor.say({ ping })
      await visitor.until(() => visitor.told.some((message) => 'pong' in message && message.pong === ping))
    }
    expect(visitor.bytes).toBeLessThan(OUTPUT_WINDOW_BYTES + 64 * 1024)
    const reading = setInterval(() => visitor.say({ seen: 32_768 }), 1)
    await visitor.shows(/129999\r\n130000\r\n[$#] $/)
    clearInterval(reading)
    expect(visitor.bytes).toBe((await heldSession('slow'))?.output_bytes)
    await visitor.leave()
  })

  it('one that sends more than there is room for is sent away, and so is one that talks nonsense', async () => {
    const cookie = await world.signIn()
    const flood = await world.open({ session: 'stuck', cookie })
    await flood.shows(PROMPT)
    await flood.type('stty -icanon -echo; sleep 60\r')
    for (let count = 0; count < 200; count++) flood.socket.send(Buffer.alloc(60_000, 'x'))
    expect(await flood.closed()).toBe(1008)
    const nonsense = await world.open({ session: 'stuck', cookie })
    await nonsense.attached()
    nonsense.socket.send('{"resize":["wide",1]}')
    expect([await nonsense.closed(), nonsense.reason]).toEqual([1008, 'A message was not understood.'])
    const big = await world.open({ session: 'stuck', cookie })
    await big.attached()
    big.socket.send(Buffer.alloc(200_000))
    expect(await big.closed()).toBe(1009)
  })

  it('a long paste arrives whole, also where what it says comes back', async () => {
    const visitor = await world.open({ session: 'paste', cookie: await world.signIn() })
    await visitor.shows(PROMPT)
    const file = join(world.directory, 'pasted')
    const line = `${'paste '.repeat(15)}\n`
    const text = line.repeat(12_000)
    await visitor.type(
      `stty raw -echo; echo ready; head -c ${text.length} | tee ${file}; stty sane; echo "all $((1+1))"\r`,
    )
    await visitor.shows(/ready\s/)
    await visitor.type(text)
    await visitor.shows(/all 2/)
    expect(readFileSync(file, 'utf8')).toBe(text)
    await visitor.leave()
  })
})

it('upgrades of other paths are refused, and the connection closed', async () => {
  const socket = new WebSocket(`${world.control.replace('https', 'wss')}/`, { ca: world.ca, origin: world.control })
  const [error] = await once(socket, 'error')
  expect(String(error)).toContain('404')
})

/** A visitor that speaks WebSocket by hand, and so answers no closing (RFC 6455, 5.2). */
async function openRude(session: string, cookie: string) {
  const sent = request(`${world.control}/terminal/demo/${session}/socket?columns=80&rows=24`, {
    ca: world.ca,
    headers: {
      connection: 'Upgrade',
      upgrade: 'websocket',
      'sec-websocket-version': '13',
      'sec-websocket-key': 'AAAAAAAAAAAAAAAAAAAAAA==',
      origin: world.control,
      cookie,
    },
  })
  sent.end()
  const [, socket, head] = (await once(sent, 'upgrade')) as [unknown, Socket, Buffer]
  let heard = head
  let wake = () => {}
  socket.on('data', (bytes) => {
    heard = Buffer.concat([heard, bytes])
    wake()
  })
  socket.on('error', () => {})
  socket.on('close', () => wake())
  const frame = (kind: number, text: string) =>
    socket.write(Buffer.concat([Buffer.of(0x80 | kind, 0x80 | text.length, 0, 0, 0, 0), Buffer.from(text)]))
  return {
    async until(shown: string | Buffer): Promise<void> {
      while (!heard.includes(shown)) {
        if (socket.closed) throw new Error(`closed before ${shown}`)
        await new Promise<void>((resolve) => {
          wake = resolve
        })
      }
    },
    say: (text: string) => frame(1, text),
    type: (text: string) => frame(2, text),
    isClosed: () => socket.closed,
  }
}

/** Bytes in buffers that somebody still refers to. */
function heldBytes(): number {
  setFlagsFromString('--expose-gc')
  runInNewContext('gc')()
  return process.memoryUsage().arrayBuffers
}

async function heldSession(session: string): Promise<HeldStatus | undefined> {
  return (await world.held()).find(({ name }) => name === session)
}

type Page = { status: number; headers: Record<string, unknown>; text: string; bytes: number }

async function fetchPage(
  path: string,
  options: { cookie?: string; method?: string; headers?: Record<string, string> } = {},
): Promise<Page> {
  const { method = 'GET', cookie = await world.signIn() } = options
  const sent = request(`${world.control}${path}`, {
    ca: world.ca,
    method,
    headers: {
      accept: 'text/html',
      cookie,
      ...(method === 'POST' ? { origin: world.control, 'content-length': '0' } : {}),
      ...options.headers,
    },
  })
  sent.end()
  const [answer] = await once(sent, 'response')
  const pieces: Buffer[] = []
  for await (const piece of answer) pieces.push(piece as Buffer)
  const whole = Buffer.concat(pieces)
  return { status: answer.statusCode, headers: answer.headers, text: whole.toString('utf8'), bytes: whole.length }
}
