import { Socket } from 'node:net'
import { pino } from 'pino'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { Sql } from '../../migrations/connect.ts'
import { startTestGateway, type TestGateway } from '../../test/gateway.ts'
import { type News, startNews } from '../news.ts'
import { noteCarried } from './note.ts'
import { bringBack, putToSleep, refuseWhenWanted, wakeWhenWanted } from './testing/sleeper.ts'
import { Watches } from './watches.ts'

let gateway: TestGateway
let account: number
let sql: Sql
let names = 0
const stays = { signal: new AbortController().signal, knock: 'a test' }

beforeAll(async () => {
  gateway = await startTestGateway()
  account = await gateway.addAccount()
  ;({ sql } = gateway)
})
afterAll(() => gateway?.[Symbol.asyncDispose]())

const add = () => gateway.addMachine(account, `demo${names++}`, { hostKey: Buffer.from('key') })
const wakings = async (id: number) =>
  (await sql`select detail from events where machine_id = ${id} and kind = 'machine.woken'`).map((row) => row.detail)
const desired = async (id: number) => (await sql`select desired_state from machines where id = ${id}`)[0]?.desired_state

describe('a machine that sleeps', () => {
  it('is woken once however many come at once, and all of them go on when it is ready', async () => {
    const id = await add()
    await putToSleep(sql, id)
    await using sleeper = await wakeWhenWanted(sql, id)
    const { machines } = gateway.app
    const ready = await Promise.all(
      Array.from({ length: 50 }, () => machines.whenReady(id, { accountId: account }, stays)),
    )
    expect(new Set(ready.map(({ observedState }) => observedState))).toEqual(new Set(['running']))
    expect(await wakings(id)).toEqual([{ because: 'a test' }])
    expect(sleeper.wakes).toBe(1)
  })

  it('is woken before it has fallen asleep, by whoever comes then', async () => {
    const id = await add()
    await sql`update machines set desired_state = 'asleep' where id = ${id}`
    expect(await gateway.app.machines.whenReady(id, { accountId: account }, stays)).toMatchObject({ id })
    expect(await desired(id)).toBe('running')
  })

  it('is not woken where it is paused, stopped or of a suspended account, nor by strangers', async () => {
    const { machines } = gateway.app
    const [pausedId, stoppedId] = [await add(), await add()]
    await putToSleep(sql, pausedId, 'paused')
    await sql`update machines set desired_state = 'stopped', observed_state = 'asleep' where id = ${stoppedId}`
    await expect(machines.whenReady(pausedId, { accountId: account }, stays)).rejects.toMatchObject({
      code: 'machine.paused',
      message: expect.stringMatching(/^demo\d+ is paused; to wake it: resume demo\d+$/),
    })
    await expect(machines.whenReady(stoppedId, { accountId: account }, stays)).rejects.toMatchObject({
      code: 'machine.off',
    })
    const other = await gateway.addAccount()
    const id = await gateway.addMachine(other, 'theirs')
    await putToSleep(sql, id)
    await expect(machines.whenReady(id, { accountId: account }, stays)).rejects.toMatchObject({
      code: 'machine.not_found',
    })
    await sql`update accounts set suspended_at = now() where id = ${other}`
    await expect(machines.whenReady(id, { accountId: other }, stays)).rejects.toMatchObject({
      code: 'account.suspended',
    })
    expect([await desired(pausedId), await desired(stoppedId), await desired(id)]).toEqual([
      'paused',
      'stopped',
      'asleep',
    ])
  })
})

describe('what is carried to and from machines', () => {
  async function listening(options: { noteEveryMs?: number } = {}) {
    const statements: string[] = []
    const own = gateway.database.as('berth_gateway')
    const counted = new Proxy(own, {
      apply(target, self, [first, ...rest]: [TemplateStringsArray, ...unknown[]]) {
        if (Array.isArray(first)) statements.push(first.join('?'))
        return Reflect.apply(target, self, [first, ...rest])
      },
    })
    const news: News = await startNews(own, pino({ level: 'silent' }))
    const watches = new Watches({ sql: counted, news, log: pino({ level: 'silent' }), tickMs: 10, ...options })
    const close = async () => {
      await watches.close()
      await news.close()
    }
    return { watches, upserts: () => statements.filter((text) => text.includes('machine_activity')).length, close }
  }
  const activity = async (ids: number[]) =>
    await sql<{ id: number; what: string; agoMs: number }[]>`
      select machine_id as id, what, extract(epoch from now() - at)::float8 * 1000 as "agoMs" from machine_activity
      where machine_id in ${sql(ids)} order by machine_id`

  it('is written in one statement for all of them, and again only after a time', async () => {
    const { watches, upserts, close } = await listening({ noteEveryMs: 60_000 })
    const ids = [await add(), await add(), await add()]
    watches.of(ids[0] ?? 0).carriedOverSsh()
    watches.of(ids[1] ?? 0).httpsAtMs = performance.now()
    watches.of(ids[2] ?? 0).websocketAtMs = performance.now()
    await expect.poll(async () => (await activity(ids)).map(({ what }) => what)).toEqual(['ssh', 'https', 'websocket'])
    expect(upserts()).toBe(1)
    // The first of a machine that nothing was carried to for long is written at once; what follows waits.
    const late = await add()
    const first = watches.of(ids[0] ?? 0)
    first.websocketAtMs = performance.now() + 1
    watches.of(late).carriedOverSsh()
    await expect.poll(async () => (await activity([late])).length).toBe(1)
    expect((await activity(ids)).map(({ what }) => what)).toEqual(['ssh', 'https', 'websocket'])
    await close()
    expect((await activity(ids)).map(({ what }) => what)).toEqual(['websocket', 'https', 'websocket'])
  })

  it('keeps the latest time of several gateways, and no machine that is gone keeps the others from theirs', async () => {
    const id = await add()
    await noteCarried(sql, [{ machineId: id, agoMs: 1000, what: 'ssh' }])
    await noteCarried(sql, [
      { machineId: id, agoMs: 60_000, what: 'https' },
      { machineId: 2 ** 30, agoMs: 0, what: 'https' },
    ])
    const [row] = await activity([id])
    expect(row).toMatchObject({ what: 'ssh' })
    expect(row?.agoMs).toBeLessThan(50_000)
  })
})

describe('what a gateway knows of a machine that it is connected to', () => {
  it('is held from the moment that it shall sleep until it is ready again, and then waited for no longer', async () => {
    const { watches } = gateway.app
    const id = await add()
    const watch = watches.of(id)
    await sql`update machines set desired_state = 'asleep' where id = ${id}`
    await expect.poll(() => watch.isHeld).toBe(true)
    await putToSleep(sql, id)
    const back = watch.back('a test')
    await expect.poll(() => desired(id)).toBe('running')
    await sql`update machines set observed_state = 'running', observed_stage = 'network' where id = ${id}`
    await sql`update machines set observed_stage = 'boot' where id = ${id}`
    expect(watch.isHeld).toBe(true)
    await sql`update machines set observed_ready_at = now() where id = ${id}`
    await back
    expect(watch.isHeld).toBe(false)
  })

  it('is held while it stands still though it was wanted back before anybody here saw it asleep', async () => {
    const { watches } = gateway.app
    const id = await add()
    const watch = watches.of(id)
    let ended = 0
    const tie = watch.attach(new Socket(), { onEnded: () => ended++ })
    await sql`update machines set observed_ready_at = null where id = ${id}`
    await expect.poll(() => tie.isHeld).toBe(true)
    await sql`update machines set observed_ready_at = now() where id = ${id}`
    await expect.poll(() => tie.isHeld).toBe(false)
    expect(ended).toBe(0)
    // One that boots anew, in contrast, has none of its connections.
    await sql`update machines set observed_ready_at = null, observed_stage = 'disk' where id = ${id}`
    await expect.poll(() => ended).toBe(1)
  })

  it('is woken again when it was put back to sleep while something waits for it', async () => {
    const { watches } = gateway.app
    const id = await add()
    const watch = watches.of(id)
    await putToSleep(sql, id)
    await expect.poll(() => watch.isHeld).toBe(true)
    watch.want('a key')
    await expect.poll(() => desired(id)).toBe('running')
    await sql`update machines set desired_state = 'asleep' where id = ${id}`
    await expect.poll(() => desired(id)).toBe('running')
    await bringBack(sql, id)
    await expect.poll(() => watch.isHeld).toBe(false)
    expect(await wakings(id)).toEqual([{ because: 'a key' }, { because: 'a key' }])
  })

  it('is not wanted again and again of a server that has no memory for it', async () => {
    const { watches } = gateway.app
    const id = await add()
    const watch = watches.of(id)
    await putToSleep(sql, id)
    await expect.poll(() => watch.isHeld).toBe(true)
    await using server = await refuseWhenWanted(sql, id, 'Its server has no memory for it')
    watch.want('a key')
    await expect.poll(() => server.wakes).toBe(2)
    await new Promise((resolve) => setTimeout(resolve, 1_000))
    expect(server.wakes).toBe(2)
    expect(watch.isHeld).toBe(true)
  })

  it('stays paused whatever waits, and goes on when it is resumed', async () => {
    const { watches } = gateway.app
    const id = await add()
    const watch = watches.of(id)
    await putToSleep(sql, id, 'paused')
    await expect.poll(() => watch.isHeld).toBe(true)
    const back = watch.back('a key')
    await expect(gateway.app.watches.wake(id, 'a key')).resolves.toBe(false)
    expect(await desired(id)).toBe('paused')
    await sql`update machines set desired_state = 'running' where id = ${id}`
    await bringBack(sql, id)
    await back
  })

  it('tells whoever waits that it was stopped', async () => {
    const { watches } = gateway.app
    const id = await add()
    // Of a machine that nobody is connected to no news are heard.
    const watch = watches.of(id)
    await putToSleep(sql, id)
    await expect.poll(() => watch.isHeld).toBe(true)
    const back = watch.back('a test')
    await sql`update machines set desired_state = 'stopped' where id = ${id}`
    await expect(back).rejects.toThrow('it does not run any more')
  })
})
