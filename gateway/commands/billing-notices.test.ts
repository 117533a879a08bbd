import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { Caller } from '../app.ts'
import { soonest } from '../billing/plans.ts'
import { greeting } from '../lobby/greeting.ts'
import { startWorld, type World } from './testing/world.ts'
import { viewOf } from './text.ts'

const view = viewOf(undefined, {})

describe('notices', () => {
  let world: World
  let bob: Caller
  let tomorrow = ''
  beforeAll(async () => {
    world = await startWorld()
    bob = await world.account()
    tomorrow = await soonest(world.app.sql)
  })
  afterAll(() => world?.[Symbol.asyncDispose]())

  const run = (line: string, caller = bob) => world.run(line, { caller })
  const inOneLine = (text: string) => text.replaceAll(/\s+/g, ' ')
  const document = async (line: string, caller = bob) => (await world.json(line, { caller })).document

  it('a plan for all others is announced, and every page of it says from when something is charged', async () => {
    expect((await run('billing notices')).stdout).toBe('you were told nothing yet\n')
    expect(await greeting(world.app, bob, view)).not.toContain('You are told')
    expect((await world.run('account plan others usage')).stdout).toBe(
      `every account that no plan is named for is on plan usage from ${tomorrow} on, in UTC\none account is told\n`,
    )
    const plan = (await run('billing plan')).stdout
    expect(plan).toContain(`house: nothing is charged before ${tomorrow}\n`)
    expect(plan).toContain(`next        plan usage from ${tomorrow} on: what is used is charged\n`)
    const change = { from: tomorrow, plan: 'usage', charged: true, rates_alone: false }
    expect(await document('billing plan')).toMatchObject({ plan: 'house', charged: false, changes: [change] })
    expect((await world.json(`account show ${bob.accountId}`)).document).toMatchObject({ changes: [change] })
    expect((await world.run(`account show ${bob.accountId}`)).stdout).toMatch(/next +plan usage from/)
    expect((await world.json('billing plan')).document).toMatchObject({ changes: [] })
    // What the plan asks for is seen before it does.
    expect((await run('billing rates --plan usage')).stdout).toMatch(/cpu +\$0\.04 per vCPU-hour/)
    const rates = (await run('billing rates')).stdout.replaceAll('\n', ' ')
    expect(rates).toMatch(
      /^plan house: .* plan usage from \S+ on: what is used is charged; .* billing rates --plan usage $/,
    )
    await world.run('billing set-plan secret')
    expect(await run('billing rates --plan secret')).toMatchObject({ status: 3 })
    expect((await world.run('billing set-rate usage cpu 0.05')).stdout).toMatch(/\none account is told\n$/)
  })

  it('are named in the lobby until they are read, and those that came since are not', async () => {
    expect(await document('billing notices')).toMatchObject({
      unread: 2,
      notices: [{ subject: expect.stringMatching(/^from .* charged, by plan usage$/), read_at: null }, {}],
    })
    expect(inOneLine(await greeting(world.app, bob, view))).toMatch(
      / You are told: from .* charged, by plan usage and 1 more\. Read: billing notices $/,
    )
    const text = (await run('billing notices')).stdout
    expect(text).toMatch(/^2, just now\nfrom .*\n\nFrom [^:]*:\ncpu: \$0\.05 per vCPU-hour\nmemory:/)
    expect(text).toMatch(/\nto be told of them no more: billing notices --read\n$/)
    expect(await document('billing notices --read 1')).toMatchObject({ unread: 1, notices: [{ id: 1 }] })
    await run('billing notices --read')
    expect(await document('billing notices')).toMatchObject({ unread: 0 })
    expect(await greeting(world.app, bob, view)).not.toContain('You are told')
    expect((await run('billing notices')).stdout).toMatch(
      /^id +told +what\n +2 +just now +from .*\n +1 +just now +from/,
    )
    expect((await run('billing notices 1')).stdout).toMatch(/^1, just now\nfrom/)
  })

  it('are told of a limit of the operator’s, and of how it never acts where nothing is charged', async () => {
    const set = await world.run(`account limit ${bob.accountId} --spend 5 --hard`)
    expect(set.stdout).toMatch(
      /may spend \$5\.00 a month; its machines are paused there\nit is not reached: plan house/,
    )
    expect((await run('billing limit')).stdout).toMatch(/\nit is not reached: plan house charges nothing\n$/)
    expect(await document('billing limit')).toMatchObject({ never_reached_because: 'plan house charges nothing' })
    expect(await document('billing notices')).toMatchObject({
      notices: [{ subject: 'the operator has set a limit of $5.00 on your month' }, {}, {}],
    })
  })

  it('are the account’s own', async () => {
    const eve = await world.account()
    expect(await document('billing notices', eve)).toMatchObject({ notices: [] })
    expect(await run('billing notices 1', eve)).toMatchObject({ status: 3 })
    expect(await run('billing notices one')).toMatchObject({ status: 2 })
    await run('billing notices --read', eve)
    expect(await document('billing notices')).toMatchObject({ unread: 1 })
  })
})
