import { expect, it } from 'vitest'
import { startWorld } from './testing/world.ts'

it('an address is taken as typed where there is no mail, once for all accounts', async () => {
  await using world = await startWorld()
  expect(await world.json('whoami --email Me@Example.com')).toMatchObject({
    status: 0,
    document: { email: 'me@example.com' },
  })
  const proved = () =>
    world.gateway.sql`select email, email_proved_at is not null as proved from accounts where is_owner`
  expect(await proved()).toEqual([{ email: 'me@example.com', proved: false }])
  await world.gateway.sql`update accounts set email_proved_at = now() where is_owner`
  await world.run('whoami --email me@example.com')
  expect(await proved()).toEqual([{ email: 'me@example.com', proved: true }])
  await world.run('whoami --email another@example.com')
  expect(await proved()).toEqual([{ email: 'another@example.com', proved: false }])
  await world.run('whoami --email me@example.com')
  const other = await world.account()
  expect(await world.run('whoami --email me@example.com', { caller: other })).toMatchObject({ status: 4, stdout: '' })
  expect(await world.run('whoami --email nonsense')).toMatchObject({ status: 2 })
})

it('where mail works an address is proved by the code that was mailed there', async () => {
  // Nothing listens there: the mail stays in the outbox, where the test reads it.
  await using world = await startWorld({ env: { BERTH_SMTP: 'smtp://127.0.0.1:9' } })
  const asked = await world.run('whoami --email me@example.com')
  expect(asked.status).toBe(1)
  expect(asked.stderr).toMatch(
    /a code was mailed to me@example.com; nothing is changed yet\nwhoami --email me@example.com --code CODE\n/,
  )
  const [mail] = await world.gateway.sql<{ body: string }[]>`select body from mails`
  const code = /\d{6}/.exec(mail?.body ?? '')?.[0] ?? ''
  const wrong = code === '123456' ? '654321' : '123456'
  expect(await world.run(`whoami --email me@example.com --code ${wrong}`)).toMatchObject({ status: 4 })
  expect((await world.json('whoami')).document.email).toBeNull()
  // A code is for the address it was mailed to.
  expect(await world.run(`whoami --email you@example.com --code ${code}`)).toMatchObject({ status: 4 })
  expect(await world.json(`whoami --email me@example.com --code ${code}`)).toMatchObject({
    document: { email: 'me@example.com' },
  })
  const [account] = await world.gateway.sql`select email_proved_at from accounts where is_owner`
  expect(account?.email_proved_at).toBeInstanceOf(Date)
  const record = (await world.run('audit')).stdout
  expect(record).toContain('whoami --email=me@example.com --code=…')
  expect(record).not.toContain(code)
  expect(await world.run(`whoami --email me@example.com --code ${code}`)).toMatchObject({ status: 4 })
})

it('where mail works only who reads an address is told that another account has it', async () => {
  await using world = await startWorld({ env: { BERTH_SMTP: 'smtp://127.0.0.1:9' } })
  const { sql } = world.gateway
  const other = await world.account()
  await sql`update accounts set email = 'theirs@example.com' where id = ${other.accountId}`
  const asked = async (address: string) => {
    const { status, stdout, stderr } = await world.run(`whoami --email ${address}`)
    const wrong = await world.run(`whoami --email ${address} --code 0000000`)
    return JSON.stringify([status, stdout, stderr, wrong]).replaceAll(address, 'ADDRESS')
  }
  expect(await asked('theirs@example.com')).toBe(await asked('nobodys@example.com'))
  const scope = { tokenId: 1, expiresAtMs: Infinity, commands: undefined, machineId: undefined, tag: undefined }
  const byToken = { caller: { ...world.owner, via: 'exec', scope } as const }
  expect((await world.run('whoami --email theirs@example.com', byToken)).stderr).toMatch(/^a token may not set/)
  const [mail] = await sql<{ body: string }[]>`select body from mails where recipient = 'theirs@example.com'`
  const code = /\d{6}/.exec(mail?.body ?? '')?.[0] ?? ''
  expect(await world.run(`whoami --email theirs@example.com --code ${code}`)).toMatchObject({
    status: 4,
    stderr: expect.stringMatching(/^that address belongs to another account\n/),
  })
  expect((await world.json('whoami')).document.email).toBeNull()
})
