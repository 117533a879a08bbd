import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { createToken } from '../../accounts/tokens.ts'
import type { App, RunLine } from '../../app.ts'
import { runLine } from '../../commands/run.ts'
import { startWorld, type World } from '../../commands/testing/world.ts'
import type { Finished } from '../proxy/context.ts'
import { ExecEndpoint, type ExecLimits } from './exec.ts'
import { Quota } from './quota.ts'

describe('the quota of an account', () => {
  const limits = { burst: 3, perSecond: 2, runningPerAccount: 2, running: 3 }

  it('lets a burst through and then so many a second', () => {
    const quota = new Quota({ ...limits, runningPerAccount: 100, running: 100 })
    const admitted = (nowMs: number) => 'end' in quota.admit(1, nowMs)
    expect([0, 0, 0, 0].map(admitted)).toEqual([true, true, true, false])
    expect(quota.admit(1, 0)).toMatchObject({ status: 429, retryAfterS: 1 })
    expect([499, 500, 501].map(admitted)).toEqual([false, true, false])
    expect('end' in quota.admit(2, 501)).toBe(true)
  })

  it('bounds what runs at once, of one and of all', () => {
    const quota = new Quota(limits)
    const first = quota.admit(1)
    quota.admit(1)
    expect(quota.admit(1)).toMatchObject({ status: 429 })
    quota.admit(2)
    expect(quota.admit(3)).toMatchObject({ status: 503 })
    if ('end' in first) for (const _ of [1, 2]) first.end()
    expect('end' in quota.admit(1)).toBe(true)
    expect(quota.admit(1)).not.toHaveProperty('end')
  })
})

describe('a line', () => {
  let world: World
  let token: string
  beforeAll(async () => {
    world = await startWorld()
    token = (
      await createToken(world.gateway.sql, { accountId: world.owner.accountId, label: '', expiresInMs: 600_000 })
    ).token
  })
  afterAll(() => world?.[Symbol.asyncDispose]())

  /** The endpoint alone, over plain HTTP. */
  async function serve(options: { app?: App; runLine?: RunLine; limits?: Partial<ExecLimits> }) {
    const finished: Finished[] = []
    const exec = new ExecEndpoint({
      app: world.app,
      runLine,
      finished: (exchange) => finished.push(exchange),
      ...options,
    })
    const server = createServer((request, response) => exec.answer(request, response))
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    const { port } = server.address() as AddressInfo
    return {
      finished,
      post: (line: string, bearer = token, { query = '', signal }: { query?: string; signal?: AbortSignal } = {}) =>
        fetch(`http://127.0.0.1:${port}/exec${query}`, {
          method: 'POST',
          body: line,
          ...(signal ? { signal } : {}),
          headers: { authorization: `Bearer ${bearer}`, accept: 'application/x-ndjson' },
        }),
      [Symbol.asyncDispose]: async () => {
        exec.close()
        server.closeAllConnections()
        await new Promise((resolve) => server.close(resolve))
      },
    }
  }

  it('that does not end is interrupted and answered 504', async () => {
    const interrupted = Promise.withResolvers<void>()
    await using site = await serve({
      limits: { lineMs: 50 },
      runLine: (_app, _caller, _line, { signal }) =>
        new Promise((resolve) => {
          signal.addEventListener('abort', () => {
            interrupted.resolve()
            resolve(130)
          })
        }),
    })
    const answer = await site.post('ls')
    expect([answer.status, await answer.json()]).toEqual([
      504,
      { error: 'the command did not end within 0.05 s and was interrupted', code: 'timeout' },
    ])
    await interrupted.promise
  })

  it('that fails in a way nobody foresaw is answered all the same, also when its stream has begun', async () => {
    const broken: RunLine = (_app, _caller, _line, { stdout }) =>
      new Promise((resolve) => {
        setTimeout(() => stdout.write('{', () => resolve(0)), 100)
      })
    await using site = await serve({ runLine: broken, limits: { headMs: 10 } })
    const answer = await site.post('ls')
    expect([answer.status, await answer.json()]).toMatchObject([500, { code: 'internal' }])
    expect(JSON.parse(await (await site.post('ssh demo true')).text())).toEqual({ error: expect.any(String) })
  })

  it('is to be tried again while the database is away', async () => {
    const away = Object.assign(new Error('no answer'), { code: 'CONNECT_TIMEOUT' })
    const sql = (() => Promise.reject(away)) as unknown as App['sql']
    await using site = await serve({ app: { ...world.app, sql } })
    const answer = await site.post('ls')
    expect([answer.status, answer.headers.get('retry-after')]).toEqual([503, '5'])
    expect(await answer.json()).toEqual({ error: expect.stringContaining('the database'), code: 'busy' })
  })

  it('over the quota is told when to try again', async () => {
    await using site = await serve({ limits: { burst: 1, perSecond: 0.5 } })
    expect((await site.post('ls')).status).toBe(200)
    const refused = await site.post('ls')
    expect([refused.status, refused.headers.get('retry-after')]).toEqual([429, '2'])
  })

  it('that is followed is held up by a client that does not read, and interrupted when it leaves', async () => {
    const interrupted = Promise.withResolvers<void>()
    let told = 0
    await using site = await serve({
      async runLine(_app, _caller, _line, { tell, signal }) {
        while (!signal.aborted) {
          await tell?.({ text: 'x'.repeat(65_536) })
          told++
        }
        interrupted.resolve()
        return 130
      },
    })
    const leave = new AbortController()
    await site.post('logs demo -f', token, { query: '?follow', signal: leave.signal })
    let before = -1
    await expect
      .poll(
        () => {
          const stands = told > 0 && told === before
          before = told
          return stands
        },
        { timeout: 20_000, interval: 200 },
      )
      .toBe(true)
    expect(told * 65_536).toBeLessThan(32 * 2 ** 20)
    leave.abort()
    await interrupted.promise
  })

  it('is in the access log, without what is secret in it', async () => {
    await using site = await serve({})
    const text = await (await site.post('ls')).text()
    await expect
      .poll(() => site.finished)
      .toMatchObject([{ path: '/exec', status: 200, user: String(world.owner.accountId), sentBytes: text.length }])
    expect(JSON.stringify(site.finished)).not.toContain(token)
  })

  it('of many bad tokens is not looked at any more', async () => {
    await using site = await serve({})
    const statuses: number[] = []
    for (let n = 0; n < 301; n++) statuses.push((await site.post('ls', `exe1.${'0'.repeat(26)}`)).status)
    expect([statuses[0], statuses[299], statuses[300]]).toEqual([401, 401, 429])
  })

  it('that makes or starts a machine answers before the machine is ready, and the making goes on', async () => {
    await using site = await serve({ limits: { patienceMs: 100 } })
    world.vmhost.paused = true
    const made = await site.post('new slow')
    expect([made.status, await made.json()]).toMatchObject([200, { vm_name: 'slow', status: 'creating' }])
    const restarted = await site.post('restart slow')
    expect([restarted.status, await restarted.json()]).toEqual([200, { vm_name: 'slow', status: 'starting' }])
    world.vmhost.paused = false
    world.vmhost.look()
    await expect
      .poll(async () => (await world.json('ls slow')).document)
      .toMatchObject({
        vms: [{ status: 'running' }],
      })
  })

  it('that waits long for its machine shows signs of life, and errors are part of the stream from then on', async () => {
    await using site = await serve({ limits: { headMs: 50, heartbeatMs: 20 } })
    world.vmhost.paused = true
    await world.run('new never --no-wait')
    const answer = await site.post('ssh never true')
    expect([answer.status, answer.headers.get('content-type')]).toEqual([200, 'application/x-ndjson'])
    const text: string[] = []
    for await (const chunk of answer.body ?? []) {
      text.push(Buffer.from(chunk).toString())
      if (text.length > 1) continue
      expect(text).toEqual(['\n'])
      world.vmhost.failures.set('never', 'the kernel panicked')
      world.vmhost.paused = false
      world.vmhost.look()
    }
    expect(JSON.parse(text.join(''))).toEqual({
      error: expect.stringMatching(/^VM "never" is not running.*panicked/),
    })
  })
})
