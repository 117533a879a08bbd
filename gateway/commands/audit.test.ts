import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { Caller } from '../app.ts'
import { startWorld, type World } from './testing/world.ts'

type Said = {
  id: number
  kind: string
  machine_name: string | null
  actor: string
  who: string
  address: string | null
  via: string | null
  command: string | null
  detail: Record<string, unknown>
}

describe('audit', () => {
  let world: World
  let ada: Caller
  beforeAll(async () => {
    world = await startWorld()
    ada = await world.account()
    await world.gateway.sql`update accounts set email = 'ada@example.com' where id = ${ada.accountId}`
  })
  afterAll(() => world?.[Symbol.asyncDispose]())

  const events = async (line: string, caller: Caller) => {
    const { document, status } = await world.json(`audit ${line}`, { caller })
    expect(status, JSON.stringify(document)).toBe(0)
    return (document as { events: Said[] }).events
  }
  const tokenOf = async (caller: Caller) => {
    const made = await world.run('token new --label script --json', { caller })
    return JSON.parse(made.stdout).id as number
  }
  const last = async (caller: Caller, line = '') => (await events(`${line} -n 1`, caller))[0]

  it('has of each change who made it, from where and by which command, and no secret', async () => {
    const line =
      "new demo --no-wait --memory 1G --disk 1G --env KEY=hunter2 --setup-script 'echo hunter3' --command 'serve --key hunter4' --tag 'a b'"
    const refused = await world.run(line, { caller: ada })
    expect(refused.status, refused.stdout).not.toBe(0)
    const made = await world.run(line.replace("'a b'", 'web'), { caller: ada })
    expect(made.status, made.stderr).toBe(0)
    expect(await last(ada, '--kind machine.created')).toMatchObject({
      ...{ kind: 'machine.created', machine_name: 'demo', actor: `account:${ada.accountId}`, who: 'you' },
      ...{ address: '192.0.2.7', via: 'ssh' },
      command: 'new demo --no-wait --memory=1G --disk=1G --env=KEY=… --setup-script=… --command=… --tag=web',
    })
    await world.run('comment demo it is --json', { caller: { ...ada, via: 'web' } })
    expect(await last(ada)).toMatchObject({ kind: 'machine.commented', via: 'web' })
    const tokenId = await tokenOf(ada)
    const scope = { tokenId, expiresAtMs: Infinity, commands: undefined, machineId: undefined, tag: undefined }
    await world.run('tag demo ci', { caller: { ...ada, via: 'exec', scope } })
    expect(await last(ada)).toMatchObject({
      kind: 'machine.tagged',
      actor: `token:${tokenId}`,
      via: 'exec',
      command: 'tag demo ci',
    })
    const all = JSON.stringify((await world.json('audit -n 1000')).document)
    expect(all).not.toMatch(/hunter/)
  })

  it('has what nobody asked for, and says that nobody did', async () => {
    await world.gateway
      .sql`insert into events (account_id, actor, kind) values (${ada.accountId}, 'gateway', 'test.woken')`
    expect(await last(ada, '--actor gateway')).toMatchObject({
      kind: 'test.woken',
      who: 'gateway',
      via: null,
      command: null,
    })
  })

  it('does not tell an account what the operator’s token was used from, nor by which command; it does of its own, though taken back', async () => {
    const used = (tokenId: number) => ({
      tokenId,
      expiresAtMs: Infinity,
      commands: undefined,
      machineId: undefined,
      tag: undefined,
    })
    const [operators, own] = [await tokenOf(world.owner), await tokenOf(ada)]
    await world.run('account credit ada@example.com 5 by a script', {
      caller: { ...world.owner, via: 'exec', scope: used(operators) },
    })
    expect(await last(ada)).toMatchObject({
      kind: 'account.credited',
      who: `token:${operators}`,
      address: null,
      command: null,
    })
    expect(await last(ada, '--actor operator')).toMatchObject({ kind: 'account.credited' })
    expect(await last(world.owner)).toMatchObject({ who: `token:${operators} script`, address: expect.any(String) })
    await world.run('comment demo mine', { caller: { ...ada, via: 'exec', scope: used(own) } })
    await world.run(`token rm ${own}`, { caller: ada })
    expect(await last(ada, '--kind machine.commented')).toMatchObject({
      who: `token:${own} script`,
      address: '192.0.2.7',
      command: 'comment demo mine',
    })
  })

  it('shows an account its own and what was done to it, and to the operator everything', async () => {
    await world.run('account credit ada@example.com 5 the outage')
    const done = await last(ada)
    expect(done).toMatchObject({ kind: 'account.credited', who: 'operator', address: null, command: null })
    expect(await last(world.owner)).toMatchObject({
      ...{ kind: 'account.credited', who: 'you', account_id: ada.accountId },
      command: 'account credit ada@example.com 5 the outage',
    })
    expect(await events('--account ada@example.com --kind machine', world.owner)).not.toEqual([])
    const other = await world.account()
    expect(await events('-n 1000', other)).toEqual([])
    for (const line of ['audit demo', 'audit --account ada@example.com', `audit --account ${ada.accountId}`]) {
      expect((await world.run(line, { caller: other })).status, line).toBeGreaterThan(0)
    }
    expect((await world.run('audit demo')).status).toBe(0)
  })

  it('finds by machine, also one that is gone or had another name', async () => {
    await world.run('rename demo other', { caller: ada })
    const kinds = (list: Said[]) => list.map(({ kind }) => kind)
    const before = await events('other', ada)
    expect(kinds(before)).toEqual(expect.arrayContaining(['machine.created', 'machine.renamed']))
    expect(await events('demo', ada)).toEqual(before)
    await world.run('new demo --no-wait --memory 1G --disk 1G', { caller: ada })
    expect(kinds(await events('demo --kind machine', ada))).toEqual(['machine.created'])
    await world.run('rm --now demo', { caller: ada })
    await world.gateway.database.as('owner')`update machines set observed_state = 'gone' where name = 'demo'`
    expect(kinds(await events('demo --actor you', ada))).toEqual(expect.arrayContaining(['machine.deleted']))
    expect(await world.run('audit nothing', { caller: ada })).toMatchObject({ status: 3 })
  })

  it('finds by kind, actor and time, and pages to the very first', async () => {
    const { sql } = world.gateway
    await sql`insert into events (account_id, actor, kind, at) values
      (${ada.accountId}, 'host:one', 'test.old', '2026-01-01T12:00Z'), (${ada.accountId}, 'host:one', 'testing', '2026-01-02')`
    const kinds = async (line: string) => (await events(line, ada)).map(({ kind }) => kind)
    expect(await kinds('--kind test.old')).toEqual(['test.old'])
    expect(await kinds('--kind test --actor host')).toEqual(['test.old'])
    expect(await kinds('--kind test --kind testing --actor host:one')).toEqual(['test.old', 'testing'])
    expect(await kinds('--since 2026-01-01 --until 2026-01-02')).toEqual(['test.old'])
    expect(await kinds('--since 2026-01-01T12:00 --until 2026-01-01T12:01Z')).toEqual(['test.old'])
    expect(await kinds('--until 30d')).toEqual(['test.old', 'testing'])
    expect(new Set(await kinds('--actor ada@example.com --since 1h'))).toEqual(new Set(await kinds('--actor you')))
    expect(await kinds('--actor operator')).toEqual(['account.credited', 'account.credited'])
    const all = (await events('-n 1000', ada)).map(({ id }) => id)
    const paged: number[] = []
    for (let before = ''; ; ) {
      const { document } = await world.json(`audit -n 3 ${before}`, { caller: ada })
      const page = document as { events: Said[]; older: number | null }
      paged.unshift(...page.events.map(({ id }) => id))
      if (page.older === null) break
      before = `--before ${page.older}`
    }
    expect(paged).toEqual(all)
    // The line that leads on asks for the same.
    const asked = "audit --kind account --kind machine --last 1 --actor you --since '2026-01-01 00:00'"
    const { stdout } = await world.run(asked, { caller: ada })
    const [, next = ''] = /\nolder ones: (.*)\n$/.exec(stdout) ?? []
    expect(next.replace(/ --before \d+$/, '')).toBe(asked)
    const { document: newest } = await world.json(asked, { caller: ada })
    const { document: before } = await world.json(next, { caller: ada })
    const both = [before, newest].flatMap((page) => (page as { events: Said[] }).events.map(({ id }) => id))
    expect(both).toEqual(
      (await events(asked.slice('audit '.length).replace('--last 1', '-n 2'), ada)).map(({ id }) => id),
    )
    expect((await world.run('audit --kind nothing', { caller: ada })).stdout).toBe('nothing like that\n')
    expect((await world.run('audit --kind machine.created', { caller: ada })).stdout).toMatch(
      /, disk 1 GiB, memory 1 GiB\n/,
    )
    await world.run('token new', { caller: ada })
    expect((await world.run('audit --kind token.created -n 1', { caller: ada })).stdout).toMatch(/ id \d+\n/)
  })

  it.each([
    ['audit --kind Machine', /machine\.created or machine/],
    ['audit --kind machine.%', /machine\.created or machine/],
    ['audit --actor root', /you, operator, gateway/],
    ['audit --since yesterday', /2h, 7d, 2026-11-01/],
    ['audit --since 2026-02-30', /2h, 7d, 2026-11-01/],
    ['audit --until 2026-11-01T25:00', /2h, 7d, 2026-11-01/],
    ['audit -n 0', /between 1 and 1000/],
    ['audit --before 0', /at least 1/],
  ])('%s', async (line, sentence) => {
    expect(await world.run(line)).toMatchObject({ status: 2, stderr: expect.stringMatching(sentence) })
  })

  it('whoever shows it live hears of each record', async () => {
    const { promise: heard, resolve } = Promise.withResolvers<string>()
    using _ = { [Symbol.dispose]: world.app.news.on('events', resolve) }
    await world.run('comment other again', { caller: ada })
    expect(await heard).toBe(String(ada.accountId))
  })
})
