import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import type { Caller } from '../app.ts'
import { ANOTHER_MACHINE, refuseBeyondCaps } from '../billing/caps.ts'
import { closeDueMonths } from '../billing/closing.ts'
import { soonest } from '../billing/plans.ts'
import { runLine } from './run.ts'
import { recordingIo, startWorld, type World } from './testing/world.ts'
import { textWidth } from './width.ts'

/** It runs since its last fact, as the stand-in server says. */
const AHEAD = [
  '',
  'by the end of February 2026 it would have cost about $47.54, if the machine that',
  'runs now runs on until then, disks and checkpoints stay as large as they are and',
  'as much is sent as in the last 7 days (until 2026-03-01 00:00 UTC)',
  '',
]
const never = new AbortController().signal

describe('billing', () => {
  let world: World
  let ada: Caller
  let machineId = 0
  beforeAll(async () => {
    vi.useFakeTimers({ toFake: ['Date'], now: new Date('2026-02-20T12:00:00Z') })
    world = await startWorld()
    ada = await world.account()
    const { sql } = world.gateway
    await sql`update accounts set email = 'ada@example.com', created_at = '2026-01-01' where id = ${ada.accountId}`
    await world.run('new demo --no-wait --memory 1G --disk 1G', { caller: ada })
    const [row] = await sql<{ id: number }[]>`select id from machines where name = 'demo'`
    machineId = row?.id ?? 0
    // Two vCPUs and a GiB for 100 hours, a disk of 10 GiB for twice as long, and a gigabyte sent.
    await sql`
      insert into machine_spans (machine_id, host_id, started_at, ended_at, state, cpus, memory_bytes, disk_bytes)
      select ${machineId}, 1, at, at + interval '1 hour', case when n < 100 then 'running' else 'asleep' end, 2, ${2 ** 30}, ${10 * 2 ** 30}
      from generate_series(0, 199) as n cross join lateral (select '2026-02-02'::timestamptz at time zone 'utc' at time zone 'utc' + n * interval '1 hour' as at) t`
    await sql`
      insert into transfer_readings select gen_random_uuid(), 1, ${machineId}, 1, gen_random_uuid(), '2026-02-03', 1500000000, 0, 0, 0,
        250000000, 0, 0, 0`
  })
  afterAll(async () => {
    vi.useRealTimers()
    await world?.[Symbol.asyncDispose]()
  })

  const run = (line: string) => world.run(line, { caller: ada })
  const document = async (line: string, caller = ada) => (await world.json(line, { caller })).document
  const onTerminal = async (line: string, caller: Caller, columns = 80) => {
    const terminal = { term: 'dumb', columns, rows: 24, onResize: () => () => {} }
    const io = recordingIo({ terminal })
    expect(await runLine(world.app, caller, line, io)).toBe(0)
    return io.stdoutText().replaceAll('\r\n', '\n')
  }

  it('on plan house it shows what things would cost', async () => {
    expect((await run('billing plan')).stdout).toMatch(
      /^plan +house: nothing is charged\nthis month +it would cost \$\d+\.\d\d for February 2026/,
    )
    expect(await onTerminal('billing usage', ada)).toBe(
      [
        'February 2026 so far, in UTC: nothing is charged, this is what it would cost',
        'what                         quantity  rate                  cost',
        'vCPU               200.000 vCPU-hours  $0.04 per vCPU-hour  $8.00',
        'memory              100.000 GiB-hours  $0.006 per GiB-hour  $0.60',
        'disk                 2.976 GiB-months  $0.08 per GiB-month  $0.24',
        'transfer, direct             1.500 GB  $0.07 per GB         $0.10',
        'transfer, gateway            0.250 GB  $0.07 per GB         $0.02',
        'total                                                       $8.96',
        ...AHEAD,
      ].join('\n'),
    )
    expect(await onTerminal('billing usage --by machine', ada)).toBe(
      [
        'February 2026 so far, in UTC: nothing is charged, this is what it would cost',
        'machine    cpu  memory   disk  transfer   cost',
        'demo     $8.00   $0.60  $0.24     $0.12  $8.96',
        'total    $8.00   $0.60  $0.24     $0.12  $8.96',
        ...AHEAD,
      ].join('\n'),
    )
    expect(await document('billing usage')).toMatchObject({
      currency: 'USD',
      charged_micros: 0,
      total_micros: 8_960_595,
      lines: [{ kind: 'cpu', amount_micros: 8_000_000, quantity: '200.000000', unit: 'vCPU-hour' }, {}, {}, {}, {}],
      machines: [{ vm_name: 'demo', amount_micros: 8_960_595 }],
      forecast: {
        ...{ until: '2026-03-01T00:00:00.000Z', total_micros: 47_541_929, charged_micros: 0, limits: [] },
        assumes: ['the machine that runs now runs on until then', {}, {}].map(() => expect.any(String)),
      },
    })
    expect((await run('billing usage --by day --csv')).stdout).toMatch(
      /^day,kind,class,plan,charged,unit,quantity,amount_usd\n2026-02-02,cpu,,house,no,vCPU-hour,48\.000000000,1\.920000\n/,
    )
    expect(await document('billing usage --range 7d')).not.toHaveProperty('forecast')
    expect((await run('billing usage --range 24h')).stdout).toBe(
      'nothing was used in the last 24 hours; rates: billing rates\n',
    )
    expect((await run('billing rates')).stdout).toMatch(/nothing is charged.*\n.*\ncpu +\$0\.04 per vCPU-hour\n/)
    expect((await run('ls')).stdout).toMatch(/ cost\n.* \$8\.96\n/)
    expect(await document('ls')).toMatchObject({ vms: [{ cost_this_month_micros: 8_960_595 }] })
    expect((await run('whoami --json')).stdout).toMatch(/"plan":"house"/)
    // What somebody has set is shown as they set it.
    expect((await run('billing limit 0.0045')).stdout).toMatch(
      /^\$0\.0045 a month; mail at 80 and 100 %, nothing else\n/,
    )
    await run('billing limit none')
  })

  it('the operator sets plans and rates from tomorrow on, and says when', async () => {
    const tomorrow = await soonest(world.app.sql)
    expect((await world.run('billing set-plan team --machines 1 --memory 2G')).stdout).toMatch(
      /^plan team is there: up to one machine, 2 GiB memory\n/,
    )
    expect((await world.run('billing set-rate team fee 20')).stdout).toBe(
      `plan team: fee is $20.00 per month from ${tomorrow} on, in UTC\n`,
    )
    expect((await world.run('billing set-rate team cpu 0.035 --included 500')).stdout).toMatch(
      /cpu is \$0\.035 per vCPU-hour from .*, 500 vCPU-hours a month included/,
    )
    expect((await world.run('account plan ada@example.com team')).stdout).toBe(
      `ada@example.com is on plan team from ${tomorrow} on, in UTC\none account is told\n`,
    )
    expect((await world.run('account plan others usage --from 2099-01-01')).status).toBe(0)
    expect((await run('billing plan')).stdout).toContain(`next        plan team from ${tomorrow} on`)
    expect((await world.run('billing plans')).stdout).toMatch(/house +nothing is charged\nusage +none/)
    expect((await world.run('account credit ada@example.com 5 the outage of Tuesday')).stdout).toBe(
      'ada@example.com has $5.00 of credit more\n',
    )
    expect((await run('billing credits')).stdout).toMatch(/1 +\S+ +the outage of Tuesday +\$5\.00 +\$5\.00\n/)
    expect((await world.run('account ls')).stdout).toMatch(/ada@example\.com +1 of 10 +house/)
    // What begins tomorrow is shown with its day.
    expect((await world.run('billing plans')).stdout).toMatch(
      new RegExp(`\\nteam +\\$20\\.00 per month from ${tomorrow} +cpu from ${tomorrow} +one machine`),
    )
    expect(await document('billing plans', world.owner)).toMatchObject({
      plans: expect.arrayContaining([
        expect.objectContaining({
          ...{ plan: 'team', fee_micros: 0, fees_to_come: [{ fee_micros: 20_000_000, from: tomorrow }] },
          rates_of_its_own: [],
        }),
      ]),
    })
    expect((await world.json('billing set-plan lab --memory none')).document).toEqual({
      ...{ plan: 'lab', created: true, told: 0 },
      ...{ machines_most: null, cpus_most: null, memory_bytes_most: null, disk_bytes_most: null },
    })
    for (const rate of ['transfer 0.05 --included 10', 'memory 0.005 --included 1', 'cpu 0.03 --included 500'])
      await world.run(`billing set-rate lab ${rate}`)
    const rates = (await world.run('billing rates --plan lab')).stdout
    for (const included of ['500 vCPU-hours', '1 GiB-hour', '10 GB']) expect(rates).toContain(` ${included} `)
    // The default's rate until the plan's own begins, and no longer.
    await world.run('billing set-rate usage cpu 0.05 --from 2099-01-01')
    await world.run('billing set-rate usage disk 0.09 --from 2099-01-01')
    const { rates: held } = (await world.json('billing rates --plan lab')).document as { rates: { kind: string }[] }
    expect(held.filter(({ kind }) => kind === 'cpu' || kind === 'disk')).toMatchObject([
      { kind: 'cpu', rate_micros: 40_000, from: null, to: tomorrow },
      { kind: 'disk', rate_micros: 80_000, from: null, to: '2099-01-01' },
      { kind: 'cpu', rate_micros: 30_000, from: tomorrow, to: null },
      { kind: 'disk', rate_micros: 90_000, from: '2099-01-01', to: null },
    ])
    // Those to come in order of time, and then as on invoices.
    expect(
      rates
        .trimEnd()
        .split('\n')
        .slice(-3)
        .map((line) => line.split(' ')[0]),
    ).toEqual(['cpu', 'memory', 'transfer'])
  })

  it('a plan that was made by mistake is removed, and one that somebody was on or is to be on stays', async () => {
    const { sql } = world.gateway
    await world.run('billing set-plan taem --machines 1')
    await world.run('billing set-rate taem fee 20')
    // In force since yesterday, but nobody's.
    await sql`alter table rates disable trigger user`
    await sql`update rates set effective = '[2026-02-19,)' where plan = 'taem'`
    await sql`alter table rates enable trigger user`
    expect(await run('billing remove-plan taem')).toMatchObject({ status: 4 })
    const tomorrow = await soonest(world.app.sql)
    await world.run('account plan ada@example.com taem')
    expect(await world.run('billing remove-plan taem')).toMatchObject({
      status: 1,
      stderr: `ada@example.com is on plan taem from ${tomorrow} on\nput them on another first: account plan ada@example.com PLAN\n`,
    })
    await world.run('account plan ada@example.com team')
    await expect(world.app.sql`delete from rates where plan = 'taem'`).rejects.toThrow(/never what was/)
    expect(await world.run('billing remove-plan taem')).toMatchObject({
      status: 0,
      stdout: 'plan taem is gone, with its rates\n',
    })
    expect((await world.run('billing plans')).stdout).not.toContain('taem')
    expect(await sql`select from rates where plan = 'taem'`).toEqual([])
    expect((await world.run('audit --kind billing.plan_removed')).stdout).toMatch(/plan taem/)
    expect(await world.run('billing remove-plan taem')).toMatchObject({ status: 3 })
    await sql`alter table account_plans disable trigger user`
    await sql`insert into account_plans (account_id, plan, effective) values (${ada.accountId}, 'lab', '[2026-01-02,2026-01-03)')`
    expect(await world.run('billing remove-plan lab')).toMatchObject({
      status: 1,
      stderr: expect.stringMatching(/^ada@example\.com was on plan lab, and what was used then is computed by it\n/),
    })
    // Whoever forgets to look is refused by the database.
    await expect(world.app.sql`delete from plans where name = 'lab'`).rejects.toThrow(/foreign key/)
    await expect(sql`delete from plans where name = 'usage'`).rejects.toThrow(/come from/)
    await sql`delete from account_plans where plan = 'lab'`
    await sql`alter table account_plans enable trigger user`
    for (const plan of ['house', 'usage']) {
      expect(await world.run(`billing remove-plan ${plan}`)).toMatchObject({
        status: 1,
        stderr: expect.stringContaining(`plan ${plan} stays: `),
      })
    }
  })

  it('a plan has room for so much, and says so', async () => {
    const { sql } = world.gateway
    for (const table of ['account_plans', 'rates']) await sql.unsafe(`alter table ${table} disable trigger user`)
    await sql`delete from account_plans`
    await sql`insert into account_plans (account_id, plan, effective) values (${ada.accountId}, 'team', tstzrange('2026-02-01', null))`
    await sql`update rates set effective = tstzrange('2026-02-01', null) where plan = 'team'`
    for (const table of ['account_plans', 'rates']) await sql.unsafe(`alter table ${table} enable trigger user`)
    expect(await run('new second --no-wait --memory 256M --disk 1G')).toMatchObject({
      status: 4,
      stderr: expect.stringMatching(/plan team is for one machine, and this would make it 2 machines/),
    })
    expect(await run('cp demo second')).toMatchObject({
      status: 4,
      stderr: expect.stringMatching(/plan team is for one machine, and this would make it 2 machines/),
    })
    expect(await run('resize demo --memory 3G')).toMatchObject({
      status: 4,
      stderr: expect.stringMatching(/plan team is for 2 GiB of memory, and this would make it 3 GiB/),
    })
    expect((await run('ls')).stdout).not.toContain('second')
    // What there is more of than the plan is for now may stay, and other things be changed.
    await world.run('billing set-plan team --memory 512M')
    expect(await run('resize demo --disk 2G --no-wait')).toMatchObject({ status: 0 })
    expect(await run('resize demo --memory 1200M')).toMatchObject({ status: 4 })
    await world.run('billing set-plan team --memory 2G')
    // Two changes at once: the second is looked at when the first is done, and sees it.
    const { sql: asGateway } = world.app
    const done: string[] = []
    const second = Promise.withResolvers<unknown>()
    await asGateway.begin(async (tx) => {
      await refuseBeyondCaps(tx, ada.accountId, ANOTHER_MACHINE)
      second.resolve(
        asGateway
          .begin((other) => refuseBeyondCaps(other, ada.accountId, ANOTHER_MACHINE))
          .then(() => done.push('second')),
      )
      const waits = () => sql`select from pg_locks where locktype = 'advisory' and not granted`
      await expect.poll(async () => (await waits()).length).toBe(1)
      done.push('first')
    })
    await second.promise
    expect(done).toEqual(['first', 'second'])
  })

  it('a fee that is of days to come is said apart from what was used', async () => {
    // Eight of the month's 28 days.
    const ahead = 'February 2026 so far, in UTC, $5.71 of it the fee of days to come'
    const inOneLine = async (line: string, caller = ada) =>
      (await world.run(line, { caller })).stdout.replaceAll(/\s+/g, ' ')
    expect(await inOneLine('billing plan')).toContain(ahead)
    expect(await document('billing plan')).toMatchObject({ fee_ahead_micros: 5_714_280 })
    expect(await inOneLine('billing usage')).toContain(ahead)
    expect(await document('billing usage')).toMatchObject({ fee_ahead_micros: 5_714_280 })
    expect(await inOneLine('billing usage --range 7d')).not.toContain('days to come')
    expect(await inOneLine('account show ada@example.com', world.owner)).toContain(ahead)
  })

  it('a month becomes an invoice that shows every line, and is proved', async () => {
    const at = new Date('2026-03-01T03:00:00Z')
    expect(await closeDueMonths(world.app.sql, at, never, world.app.log)).toEqual([1])
    expect((await run('billing invoices')).stdout).toMatch(
      /number +month +closed +total\n +1 +February 2026 +2026-03-01 +\$15\.96\n/,
    )
    const page = await onTerminal('billing invoices 1', ada)
    expect(page).toMatch(
      /^invoice 1 {2}February 2026 {2}ada@example\.com\nclosed 2026-03-01 03:00 UTC\n\nwhat .* amount\n/,
    )
    expect(page).toMatch(
      /\nfee of the plan +\$20\.00 +\$20\.000000\nvCPU +200\.000 vCPU-hours +200\.000 +\$0\.035 +\$0\.000000\n/,
    )
    for (const line of page.split('\n')) expect(textWidth(line)).toBeLessThanOrEqual(80)
    expect(page).toMatch(/\ncredit: the outage of T… +-\$5\.000000\n/)
    expect(page).toMatch(
      /\nrounding to cents +-?\$0\.00\d{4}\ntotal +\$15\.96\nto print it: https:\/\/localhost:8443\/invoices\/1\n$/,
    )
    expect(await document('billing invoices 1')).toMatchObject({
      number: 1,
      total_micros: 15_960_000,
      lines: [
        { kind: 'fee' },
        { kind: 'cpu', included: '200.000000', facts: { machines: [[machineId, '720000000000']] } },
        {},
        {},
        {},
        {},
        {},
        {},
      ],
    })
    expect((await run('billing invoices 1 --csv')).stdout).toMatch(
      /^invoice,month,kind.*\n1,2026-02,fee,,,,month,,20\.000000,20\.000000\n/,
    )
    expect((await world.run('account show ada@example.com')).stdout).toMatch(
      /\ninvoices +1; the newest is 1, February 2026, \$15\.96\n/,
    )
    expect((await world.run('billing recompute')).stdout).toBe(
      '1 of 1 invoices are what the facts give, $20.960595 in all\n',
    )
    expect((await world.run('billing recompute 1')).stdout).toBe(
      'invoice 1 is what the facts give, $20.960595 in all\n',
    )
    expect(await world.run('billing recompute 2')).toMatchObject({ status: 3 })
    expect(await world.run('billing recompute x')).toMatchObject({ status: 2 })
    expect(await world.run('billing invoices 1', { caller: await world.account() })).toMatchObject({ status: 3 })
    expect((await run('audit --kind invoice')).stdout).toMatch(
      / invoice\.closed +gateway +month 2026-02, total \$15\.96, number 1\n/,
    )
    expect((await world.run('billing runs')).stdout).toMatch(/February 2026 +2026-03-01 +\S+ +1 +\$\d+\.\d\d\n$/)
  })

  it('who sells and who buys is set by a command, field by field', async () => {
    expect((await run('billing details')).stdout).toBe('your invoices name your account alone\n')
    const details = await run("billing details --name 'Example Ltd' --address '1 High Street, Anytown' --tax-id XY12")
    expect(details.stdout).toMatch(/^name +Example Ltd\naddress +1 High Street, Anytown\ntax number +XY12\n$/)
    expect(await document('billing details --address none')).toEqual({
      name: 'Example Ltd',
      address: null,
      tax_id: 'XY12',
    })
    expect((await world.run('billing seller')).stdout).toBe('invoices name no seller\n')
    expect((await world.json("billing seller --name 'Berths of Anytown'")).document).toMatchObject({
      name: 'Berths of Anytown',
    })
    expect(await run('billing seller --name Ada')).toMatchObject({ status: 4 })
    expect(await run("billing details --name ''")).toMatchObject({ status: 2 })
    expect(await run(`billing details --tax-id ${'9'.repeat(41)}`)).toMatchObject({ status: 2 })
    expect((await run('audit --kind billing.details_set')).stdout).toMatch(/name Example Ltd/)
  })

  it('an invoice that fails is shown to the operator, who has it tried again', async () => {
    await world.gateway
      .sql`insert into billing_failures (account_id, task, month, problem, first_at, last_at, next_attempt_at)
      values (${ada.accountId}, 'invoice', '2026-03-01', 'there is no rate for cpu', now(), now(), now() + interval '6 hours')`
    expect((await world.run('billing runs')).stdout).toMatch(
      /\nfailed\naccount.*\nada@example\.com +invoice 2026-03 +1 +in \S+ \S+ +there is no rate for cpu\n$/,
    )
    expect((await world.run('doctor')).stdout).toMatch(
      /fix gateway: invoice of account \d+ for March 2026 failed once: there is no rate\s+for cpu\s+billing runs/,
    )
    expect(await run('billing runs')).toMatchObject({ status: 4 })
    expect((await world.json('billing runs --retry')).document).toMatchObject({
      retried: 1,
      failures: [{ attempts: 1 }],
    })
    const [row] = await world.gateway.sql`select next_attempt_at <= now() as due from billing_failures`
    expect(row?.due).toBe(true)
    await world.gateway.sql`delete from billing_failures`
  })

  it('months that a clock alone says are over wait for the operator’s word', async () => {
    expect(await world.run('billing runs --close 2026-03')).toMatchObject({ status: 2 })
    await world.gateway.sql`update billing_clock set waits_since = now(), waits_because = 'the clock jumped',
      waits_from = '2026-03-01', waits_to = '2036-01-01'`
    const waits = /March 2026 to January 2036 \(119 months\)/
    expect((await world.run('doctor')).stdout).toMatch(waits)
    expect((await world.run('billing runs')).stdout).toMatch(
      /\nwaiting\nMarch 2026 to .*: the clock jumped\nset the clock right, or if it is: billing runs --close 2036-01\n$/,
    )
    expect(await world.run('billing runs --close 2026-02')).toMatchObject({ status: 2 })
    expect(await run('billing runs --close 2026-03')).toMatchObject({ status: 4 })
    expect((await world.json('billing runs --close 2026-03')).document).toMatchObject({
      waiting: { because: 'the clock jumped' },
      said_over: '2026-03',
    })
    expect(await world.gateway.sql`select over_month::text as month from billing_clock`).toEqual([
      { month: '2026-03-01' },
    ])
    await world.gateway.sql`update billing_clock set waits_since = null, waits_because = null, waits_from = null,
      waits_to = null, over_month = null`
  })

  it('a month that should have an invoice and has none is found, and closed by the operator’s word', async () => {
    const { sql } = world.gateway
    await sql`insert into invoice_runs (month, started_at, finished_at) values ('2026-01-01', '2026-02-01', '2026-02-01')`
    const [bob] = await sql<{ id: number }[]>`
      insert into accounts (email, created_at) values ('bob@example.com', '2026-01-01') returning id`
    const id = bob?.id ?? 0
    await sql`alter table account_plans disable trigger user`
    await sql`alter table rates disable trigger user`
    await sql`insert into rates (plan, kind, micros, effective) values ('lab', 'fee', 7000000, '[2026-01-01,2026-02-01)')`
    await sql`insert into account_plans (account_id, plan, effective) values (${id}, 'lab', '[2026-01-01,2026-02-01)')`
    await sql`alter table account_plans enable trigger user`
    await sql`alter table rates enable trigger user`
    const lacking = await world.run('billing recompute')
    expect([lacking.status, lacking.stderr]).toEqual([
      1,
      'no invoice has January 2026 of bob@example.com ($7.000000)\nto have it closed: billing runs --close 2026-01\n',
    ])
    expect(await document('billing recompute', world.owner)).toMatchObject({
      unbilled: [
        { account: id, email: 'bob@example.com', month: '2026-01', amount_micros: 7_000_000, because: 'missed' },
      ],
      months_not_closed: [],
    })
    expect(await world.run('billing recompute 1')).toMatchObject({ status: 0 })
    expect(await world.run('billing runs --close 2026-13')).toMatchObject({ status: 2 })
    expect(await world.run('billing runs --close 2026-02')).toMatchObject({ status: 2 })
    expect((await world.run('billing runs --close 2026-01')).stdout).toContain(
      '\none invoice that was missed is closed at the next look, within a minute\n',
    )
    const asked = await world.run('billing recompute')
    expect([asked.status, asked.stderr]).toEqual([
      1,
      expect.stringMatching(/; when that is mended: billing runs --retry\n$/),
    ])
    await closeDueMonths(world.app.sql, new Date('2026-03-01T04:00:00Z'), never, world.app.log)
    expect((await world.run('billing recompute')).status).toBe(0)
    expect(await world.run('billing runs --close 2026-01')).toMatchObject({ status: 2 })
    await sql`update billing_clock set waits_since = now(), waits_because = 'the clock jumped',
      waits_from = '2026-03-01', waits_to = '2026-04-01'`
    const waits = await world.run('billing recompute')
    expect([waits.status, waits.stderr.replaceAll(/\s+/g, ' ')]).toEqual([
      1,
      'March 2026 to April 2026 (2 months) were not closed: the clock jumped set the clock right, or if it is: billing runs --close 2026-04 ',
    ])
    await sql`update billing_clock set waits_since = null, waits_because = null, waits_from = null, waits_to = null`
  })

  it('a hard limit that is reached pauses, and every way back says why', async () => {
    // What it does at once is said at once.
    expect((await run('billing limit 15 --hard')).stdout).toBe(
      '$15.00 a month; machines are paused there\nit is reached: machines that ran are paused, and nothing wakes or starts\n',
    )
    expect(await document('billing limit')).toMatchObject({ over_limit: true })
    expect((await world.run('account limit ada@example.com --spend 10 --hard')).stdout).toBe(
      'ada@example.com may spend $10.00 a month; its machines are paused there\nit is over its limit: its machines are paused\n',
    )
    expect((await run('billing limit none')).stdout).toMatch(/operator's; machines are paused there\nit is reached: /)
    await run('billing limit 15 --hard')
    await world.run('account limit ada@example.com --spend none')
    expect((await run('billing plan')).stdout).toMatch(/it is reached: nothing\s+wakes or starts/)
    const [row] = await world.gateway.sql<
      { state: string }[]
    >`select desired_state as state from machines where id = ${machineId}`
    expect(row?.state).toBe('paused')
    for (const line of ['resume demo', 'restart demo', 'new third --no-wait --memory 256M']) {
      expect(await run(line), line).toMatchObject({
        status: 4,
        stderr: expect.stringMatching(/has reached its limit for the month\nbilling plan/),
      })
    }
    const barred =
      /its account has reached its limit for the month: nothing wakes (or starts )?it\nbilling plan shows it; to raise/
    expect((await run('why demo')).stdout).toMatch(barred)
    expect((await run('why demo')).stdout).not.toMatch(/resume/)
    expect(await document('why demo')).toMatchObject({ barred_because: expect.stringMatching(/limit for the month/) })
    await world.gateway.sql`update machines set desired_state = 'asleep' where id = ${machineId}`
    expect(await run('ssh demo true')).toMatchObject({ status: 4, stderr: expect.stringMatching(barred) })
    await world.gateway.sql`update machines set desired_state = 'paused' where id = ${machineId}`
    expect((await world.run('account ls')).stdout).toMatch(/over its limit/)
    expect((await world.run('mail')).stdout).toMatch(/your machines have reached your limit of \$15\.00/)
    expect((await run('billing limit none')).stdout).toBe(
      'no limit is set\nmachines may run again; those that were paused: resume NAME\n',
    )
    expect((await run('billing limit')).stdout).toBe('no limit is set\n')
    expect((await run('resume demo --no-wait')).status).toBe(0)
  })

  it.each([
    ['billing usage --range year', 2, /cycle, 24h, 7d or 30d/],
    ['billing usage --by colour', 2, /kind, machine or day/],
    ['billing invoices x', 2, /no number/],
    ['billing invoices 999999', 3, /billing invoices lists/],
    ['billing limit', 0, /^$/],
    ['billing limit much', 2, /USD such as 50/],
    ['billing limit 0', 2, /more than nothing/],
    ['billing limit 1.2345678', 2, /USD/],
    ['billing limit --hard', 2, /AMOUNT/],
    ['billing limit none --hard', 2, /AMOUNT/],
    ['billing rates --plan nothing', 3, /no plan called nothing/],
    ['billing set-plan Team', 2, /a-z/],
    ['billing set-plan others', 2, /no plan is called others: .*\nchoose another name/],
    ['billing set-plan team --machines many', 2, /whole number/],
    ['billing set-plan team --machines 1000000', 2, /--machines is at most 999999, or none, not 1000000/],
    ['billing set-plan team --memory 4', 2, /64G, or none, not 4\n/],
    ['billing set-rate nothing cpu 1', 3, /no plan/],
    ['billing set-rate team cpus 1', 2, /did you mean cpu/],
    ['billing set-rate team cpu -1', 2, /./],
    ['billing set-rate team fee 1 --included 3', 2, /fee includes nothing/],
    ['billing set-rate house cpu 1', 2, /nothing is charged/],
    ['billing set-rate team cpu 1 --from 2020-01-01', 2, /soonest/],
    ['billing set-rate team cpu 1 --from 2099-02-30', 2, /a day such as/],
    ['account plan nobody team', 3, /account ls/],
    ['account plan 1 team', 4, /runs this installation/],
    ['account plan ada@example.com nothing', 3, /no plan/],
    ['account credit ada@example.com 0 nothing', 2, /more than nothing/],
    ['account credit ada@example.com 5', 2, /WHAT FOR/],
    ['account limit ada@example.com', 2, /nothing is given/],
    ['account limit ada@example.com 5 --hard', 2, /--spend/],
    ['account limit ada@example.com --spend lots', 2, /USD/],
  ])('%s', async (line, status, sentence) => {
    const ran = await world.run(line)
    expect(ran.status, ran.stdout + ran.stderr).toBe(status)
    expect(ran.stderr).toMatch(sentence)
  })

  it('a limit that is half right sets nothing', async () => {
    const most = async () =>
      (await world.gateway.sql`select max_machines from accounts where id = ${ada.accountId}`)[0]?.max_machines
    const before = await most()
    expect(await world.run('account limit ada@example.com 77 --spend abc')).toMatchObject({ status: 2 })
    expect(await most()).toBe(before)
    // Nor is one written without the other.
    await world.gateway.sql.unsafe(`create function no_limit() returns trigger language plpgsql as $$ begin
      raise exception 'no limits here'; end $$;
      create trigger no_limit before insert on spend_limits for each row execute function no_limit()`)
    expect((await world.run('account limit ada@example.com 77 --spend 10')).status).not.toBe(0)
    expect(await most()).toBe(before)
    await world.gateway.sql`drop trigger no_limit on spend_limits`
    expect((await world.run('account limit ada@example.com 77 --spend 100000')).stdout).toMatch(
      /^ada@example\.com may have 77 machines, and has \d+\nada@example\.com may spend \$100000\.00 a month; it is mailed/,
    )
    expect(await most()).toBe(77)
    await world.run('account limit ada@example.com --spend none')
  })

  it('is the account’s own, and what the operator decides the operator’s', async () => {
    for (const line of [
      'billing plans',
      'billing set-plan x',
      'billing set-rate team cpu 1',
      'billing recompute',
      'account plan 2 usage',
      'account credit 2 5 x',
    ]) {
      expect(await run(line), line).toMatchObject({ status: 4, stdout: '' })
    }
    expect(await run('billing rates --plan usage')).toMatchObject({ status: 3 })
  })
})
