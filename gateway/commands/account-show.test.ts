import { expect, it } from 'vitest'
import { accountNamed } from './account-find.ts'
import { startWorld } from './testing/world.ts'

it('account show tells the operator alone what an account has, may have and costs', async () => {
  await using world = await startWorld()
  const ada = await world.account()
  await world.gateway.sql`update accounts set email = 'ada@example.com' where id = ${ada.accountId}`
  await world.run('new demo --no-wait --memory 1G --disk 10G', { caller: ada })
  await world.run('billing limit 20', { caller: ada })
  await world.run('account limit ada@example.com 3 --spend 40 --hard')
  await world.run('account credit ada@example.com 10 an outage')
  await world.run('account plan ada@example.com usage')
  const { stdout, status } = await world.run('account show ADA@example.com')
  expect(status).toBe(0)
  expect(stdout).toMatch(
    new RegExp(
      [
        `^account +${ada.accountId}, ada@example.com\nsince +.*\nplan +house\nnext +plan usage from \\d{4}-\\d\\d-\\d\\d on: what is used is charged\n`,
        'machines +1 of 3: demo\nsize +1 GiB memory, 10 GiB disk\nthis month +.*\\$0\\.\\d\\d for .* so far, in UTC\n',
        'limit +\\$20\\.00 a month; mail at 80 and 100 %, nothing else, its own\n',
        "limit +\\$40\\.00 a month, the operator's; machines are paused there\n",
        'credit +\\$10\\.00 left\ninvoices +0\nkeys +\\d+\n$',
      ].join(''),
    ),
  )
  expect((await world.json(`account show ${ada.accountId}`)).document).toMatchObject({
    ...{ id: ada.accountId, email: 'ada@example.com', owner: false, suspended: false, plan: 'house' },
    ...{ machine_count: 1, machines_most: 3, credit_micros: 10_000_000, invoices: [], invoice_count: 0 },
    machines: [{ vm_name: 'demo', allocated_cpus: 2, memory_capacity_bytes: 2 ** 30 }],
    limits: [
      { set_by: 'account', hard: false },
      { set_by: 'operator', amount_micros: 40_000_000, hard: true },
    ],
    credits: [{ amount_micros: 10_000_000, left_micros: 10_000_000, reason: 'an outage' }],
  })
  expect(await world.run('account show nobody')).toMatchObject({ status: 3 })
  expect((await world.json(`account show ${world.owner.accountId}`)).document).toMatchObject({ owner: true })
  expect(await world.run(`account show ${ada.accountId}`, { caller: ada })).toMatchObject({ status: 4, stdout: '' })
})

it('an account is found by its number or address alone, however many there are', async () => {
  await using world = await startWorld()
  const { sql } = world.gateway
  await sql`insert into accounts (email) select 'p' || n || '@example.com' from generate_series(1, 50) n`
  let read = 0
  const counted = {
    unsafe: async (...asked: Parameters<typeof sql.unsafe>) => {
      const rows = await sql.unsafe(...asked)
      read += rows.length
      return rows
    },
  }
  const found = await accountNamed(counted as never, 'P7@example.com')
  expect(found).toMatchObject({ email: 'p7@example.com', plan: 'house', machines: 0 })
  expect(await accountNamed(counted as never, String(found.id))).toEqual(found)
  expect(read).toBe(2)
  for (const typed of ['0', '-1', '01', '1.5', '99999999999', "' or true --", '']) {
    await expect(accountNamed(counted as never, typed), typed).rejects.toThrow(/no account/)
  }
})
