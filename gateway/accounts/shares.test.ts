import { expect, it } from 'vitest'
import { testDatabase } from '../../test/database.ts'
import { addShare, removeShare } from './shares.ts'

async function world() {
  const db = await testDatabase()
  const owner = db.as('owner')
  await owner`insert into hosts (name) values ('one')`
  const machine = async (name: string) => {
    const [row] = await owner<{ machineId: number; accountId: number }[]>`
      with a as (insert into accounts default values returning id)
      insert into machines (account_id, host_id, name, image, cpus, memory_bytes, disk_bytes)
      select id, 1, ${name}, 'base', 1, 1, 1 from a returning id as "machineId", account_id as "accountId"`
    if (!row) throw new Error('no machine')
    return row
  }
  const sql = db.as('berth_gateway')
  const invite = (of: { machineId: number; accountId: number }, email: string) =>
    addShare(sql, { ...of, email }, () => ({ subject: 's', body: 'b' }))
  const mails = async () => (await sql`select from mails`).length
  return { db, sql, machine, invite, mails }
}

it('one address is mailed five times a day, whether it is shared with again or removed in between', async () => {
  const { db, sql, machine, invite, mails } = await world()
  await using _ = db
  const demo = await machine('demo')
  await invite(demo, 'ada@example.com')
  await invite(demo, 'ada@example.com')
  for (let count = 2; count < 5; count++) {
    await removeShare(sql, demo.machineId, 'ada@example.com')
    await invite(demo, 'ada@example.com')
  }
  await removeShare(sql, demo.machineId, 'ada@example.com')
  await expect(invite(demo, 'ada@example.com')).rejects.toThrow('ada@example.com was sent enough invitations for a day')
  expect(await mails()).toBe(5)
  await sql`update mails set created_at = now() - interval '25 hours'`
  await invite(demo, 'ada@example.com')
})

it('an account mails fifty invitations a day, whatever became of the shares', async () => {
  const { db, sql, machine, invite, mails } = await world()
  await using _ = db
  const demo = await machine('demo')
  for (let count = 0; count < 50; count++) {
    await invite(demo, `p${count}@example.com`)
    await removeShare(sql, demo.machineId, `p${count}@example.com`)
  }
  await expect(invite(demo, 'last@example.com')).rejects.toThrow('an account sends at most 50 invitations a day')
  expect(await mails()).toBe(50)
  await invite(await machine('others'), 'last@example.com')
})

it('accounts that act together mail one address twenty times a day', async () => {
  const { db, machine, invite, mails } = await world()
  await using _ = db
  for (let account = 0; account < 4; account++) {
    const one = await machine(`m${account}`)
    for (let count = 0; count < 5; count++) await invite(one, 'ada@example.com')
  }
  await expect(invite(await machine('fifth'), 'ada@example.com')).rejects.toThrow('enough invitations')
  expect(await mails()).toBe(20)
})
