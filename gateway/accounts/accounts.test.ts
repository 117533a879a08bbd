import { generateKeyPairSync } from 'node:crypto'
import { describe, expect, it } from 'vitest'
import type { Sql } from '../../migrations/connect.ts'
import { testDatabase } from '../../test/database.ts'
import { string } from '../ssh/software-authenticator.ts'
import { checkCode, mailCode } from './email-codes.ts'
import { createInvitation, hashCode, isOpenCode, listInvitations, makeCode, revokeInvitation } from './invitations.ts'
import { addKey, addKeys, listKeys, removeKey, renameKey } from './keys.ts'
import { isRecordable, nameInComment, recordedNames, recordName } from './names.ts'
import { createOwner, isEmail, signUp } from './people.ts'
import { type KeyLine, parsePublicKey } from './public-key.ts'

function makeKey(comment = ''): KeyLine {
  const { publicKey } = generateKeyPairSync('ed25519')
  const point = Buffer.from(String(publicKey.export({ format: 'jwk' }).x), 'base64url')
  return { key: parsePublicKey(Buffer.concat([string('ssh-ed25519'), string(point)])), comment }
}

async function makeAccount(sql: Sql): Promise<number> {
  const rows = await sql<{ id: number }[]>`insert into accounts default values returning id`
  return Number(rows[0]?.id)
}

describe('keys of an account', () => {
  it('have names of their own and are added once', async () => {
    await using database = await testDatabase()
    const sql = database.as('berth_gateway')
    const account = await makeAccount(sql)
    const line = makeKey('alice@laptop')
    expect((await addKey(sql, account, line)).added).toBe(true)
    expect((await addKey(sql, account, line)).added).toBe(false)
    expect((await addKey(sql, account, makeKey('alice@laptop'))).key.name).toBe('alice@laptop-2')
    expect((await addKey(sql, account, makeKey(), 'work')).key.name).toBe('work')
    expect((await addKey(sql, account, makeKey())).key.name).toBe('ssh-ed25519')
    expect(await recordedNames(sql, account)).toEqual(['alice'])
    await renameKey(sql, account, 'work', 'office')
    await expect(renameKey(sql, account, 'office', 'ssh-ed25519')).rejects.toThrow('another key of this account')
    await expect(renameKey(sql, account, 'office', 'a\u001b[2J')).rejects.toThrow('printable')
    expect((await listKeys(sql, account)).map((key) => key.name)).toEqual([
      'alice@laptop',
      'alice@laptop-2',
      'office',
      'ssh-ed25519',
    ])
  })

  it('belong to one account', async () => {
    await using database = await testDatabase()
    const sql = database.as('berth_gateway')
    const [one, other] = [await makeAccount(sql), await makeAccount(sql)]
    const line = makeKey()
    await addKey(sql, one, line)
    await expect(addKey(sql, other, line)).rejects.toThrow(`the key ${line.key.fingerprint} belongs to another account`)
    await expect(removeKey(sql, other, line.key.fingerprint)).rejects.toThrow('no key called')
  })

  it('are added all or none, and who is told of each hears of none that was not', async () => {
    await using database = await testDatabase()
    const sql = database.as('berth_gateway')
    const [one, other] = [await makeAccount(sql), await makeAccount(sql)]
    const [first, taken, last] = [makeKey('ada@laptop'), makeKey(), makeKey()]
    await addKey(sql, other, taken)
    await expect(addKeys(sql, one, [first, taken, last])).rejects.toThrow(taken.key.fingerprint)
    expect(await listKeys(sql, one)).toEqual([])
    expect(await recordedNames(sql, one)).toEqual([])
    const heard: string[] = []
    const added = await addKeys(sql, one, [first, last, first], undefined, async (_tx, key) => {
      heard.push(key.fingerprint)
    })
    expect(added.map(({ added }) => added)).toEqual([true, true])
    expect(heard).toEqual([first.key.fingerprint, last.key.fingerprint])
  })

  it('never run out, even when two are removed at the same moment', async () => {
    await using database = await testDatabase()
    const sql = database.as('berth_gateway')
    const account = await makeAccount(sql)
    await addKey(sql, account, makeKey(), 'one')
    await addKey(sql, account, makeKey(), 'two')
    const results = await Promise.allSettled([removeKey(sql, account, 'one'), removeKey(sql, account, 'two')])
    expect(results.map((result) => result.status).sort()).toEqual(['fulfilled', 'rejected'])
    expect(await listKeys(sql, account)).toHaveLength(1)
  })

  it('are a hundred at most', async () => {
    await using database = await testDatabase()
    const sql = database.as('berth_gateway')
    const account = await makeAccount(sql)
    for (let n = 0; n < 100; n++) await addKey(sql, account, makeKey())
    await expect(addKey(sql, account, makeKey())).rejects.toThrow('an account has at most 100 keys')
  })
})

describe('recorded names', () => {
  it('are eight an account, those used last, and never a machine’s', async () => {
    await using database = await testDatabase()
    const [sql, owner] = [database.as('berth_gateway'), database.as('owner')]
    const account = await makeAccount(sql)
    for (let n = 0; n < 8; n++) await recordName(sql, account, `name${n}`)
    await recordName(sql, account, 'name0')
    expect(await recordName(sql, account, 'ninth')).toBe(true)
    const names = await recordedNames(sql, account)
    expect(names).toHaveLength(8)
    expect(names.slice(0, 2)).toEqual(['ninth', 'name0'])
    expect(names).not.toContain('name1')

    await owner`insert into hosts (name) values ('h')`
    await owner`
      with m as (insert into machines (account_id, host_id, name, image, cpus, memory_bytes, disk_bytes)
        select ${account}, id, 'demo', 'base', 1, 1, 1 from hosts returning id, name)
      insert into machine_names (machine_id, name) select id, name from m`
    expect(await recordName(sql, account, 'demo')).toBe(false)
    expect(await recordedNames(sql, account)).not.toContain('demo')
  })

  it('are names and nothing that could be mistaken for more', () => {
    for (const name of ['alice', 'Alice', 'jörg', 'DOMAIN\\alice', 'a.b', 'x'.repeat(64)]) {
      expect(isRecordable(name), name).toBe(true)
    }
    for (const name of ['', 'lobby', 'berth', 'a b', 'a+b', 'a@b', 'a\n', '\u001b', 'x'.repeat(65)]) {
      expect(isRecordable(name), name).toBe(false)
    }
    expect(nameInComment('alice@laptop')).toBe('alice')
    for (const comment of ['', 'laptop', 'my key alice@laptop', 'a@b@c', '@laptop']) {
      expect(nameInComment(comment), comment).toBeUndefined()
    }
  })
})

describe('invitations', () => {
  it('are kept as a hash, and found however the code was typed', async () => {
    await using database = await testDatabase()
    const sql = database.as('berth_gateway')
    const account = await makeAccount(sql)
    const { code, invitation } = await createInvitation(sql, { accountId: account, uses: 3 })
    expect(code).toMatch(/^[0-9a-hjkmnp-tv-z]{4}(-[0-9a-hjkmnp-tv-z]{4}){3}$/)
    expect(await isOpenCode(sql, ` ${code.toUpperCase().replaceAll('-', '')} `)).toBe(true)
    expect(hashCode('OIL0')).toEqual(hashCode('0110'))
    const [row] = await sql<{ text: string }[]>`select row_to_json(i)::text as text from invitations i`
    expect(row?.text).not.toContain(code)
    expect((await listInvitations(sql, account)).map((one) => one.usesLeft)).toEqual([3])
    expect(await revokeInvitation(sql, account + 1, invitation.id)).toBe(false)
    expect(await revokeInvitation(sql, account, invitation.id)).toBe(true)
    expect(await isOpenCode(sql, code)).toBe(false)
  })

  it('end: by use, by time, by bounds', async () => {
    await using database = await testDatabase()
    const [sql, owner] = [database.as('berth_gateway'), database.as('owner')]
    const account = await createOwner(sql, [makeKey()], ['carol'])
    if (account === undefined) throw new Error('no owner')
    const request = () => ({ key: makeKey().key, sshName: 'dave', address: '192.0.2.1' })
    const { code } = await createInvitation(sql, { accountId: account })
    expect(await signUp(sql, { ...request(), code })).toMatchObject({ isOwner: false })
    await expect(signUp(sql, { ...request(), code })).rejects.toThrow('not known, used up or too old')
    const { code: old } = await createInvitation(sql, { accountId: account })
    await owner`update invitations set expires_at = now() - interval '1 s'`
    await expect(signUp(sql, { ...request(), code: old })).rejects.toThrow('not known, used up or too old')
    await expect(createInvitation(sql, { accountId: account, uses: 0 })).rejects.toThrow('1 to 1000 uses')
    await expect(createInvitation(sql, { accountId: account, expiresInMs: 0 })).rejects.toThrow('between a second and')
  })

  it('give nothing back when the sign-up fails halfway', async () => {
    await using database = await testDatabase()
    const sql = database.as('berth_gateway')
    const taken = makeKey()
    const account = await createOwner(sql, [taken], [])
    if (account === undefined) throw new Error('no owner')
    const { code } = await createInvitation(sql, { accountId: account })
    const request = { key: taken.key, sshName: 'dave', address: '192.0.2.1', code }
    await expect(signUp(sql, request)).rejects.toThrow('this key has an account already')
    expect(await isOpenCode(sql, code)).toBe(true)
    expect(await sql`select from accounts`).toHaveLength(1)
  })

  it('differ from one another', () => {
    expect(new Set(Array.from({ length: 1000 }, makeCode)).size).toBe(1000)
  })
})

describe('the first account', () => {
  it('has the first of a starter’s keys, where an account may not have them all', async () => {
    await using database = await testDatabase()
    const sql = database.as('berth_gateway')
    const keys = Array.from({ length: 103 }, () => makeKey())
    const account = await createOwner(sql, keys, [])
    if (account === undefined) throw new Error('no owner')
    const fingerprints = (await listKeys(sql, account)).map((key) => key.fingerprint)
    expect(fingerprints).toEqual(keys.slice(0, 100).map(({ key }) => key.fingerprint))
  })

  it('is made once, however many gateways start', async () => {
    await using database = await testDatabase()
    const sql = database.as('berth_gateway')
    const made = await Promise.all([1, 2, 3, 4].map(() => createOwner(sql, [makeKey()], ['carol'])))
    expect(made.filter((id) => id !== undefined)).toHaveLength(1)
    expect(await sql`select is_owner from accounts`).toEqual([{ is_owner: true }])
  })
})

describe('mailed codes', () => {
  const secret = Buffer.alloc(32, 1)
  const publicKey = Buffer.from('key')

  async function codeOf(sql: Sql): Promise<string> {
    const rows = await sql<{ body: string }[]>`select body from mails order by id desc limit 1`
    return /\d{6}/.exec(rows[0]?.body ?? '')?.[0] ?? ''
  }

  it('hold for one address, one key, ten minutes, five tries and one use', async () => {
    await using database = await testDatabase()
    const sql = database.as('berth_gateway')
    const email = 'alice@example.com'
    await mailCode(sql, secret, { email, publicKey, domain: 'berth.example' })
    const code = await codeOf(sql)
    const check = (change: object) => checkCode(sql, secret, { email, publicKey, code, ...change })
    expect(await check({ email: 'bob@example.com' })).toBe(false)
    expect(await check({ publicKey: Buffer.from('other') })).toBe(false)
    expect(await checkCode(sql, Buffer.alloc(32, 2), { email, publicKey, code })).toBe(false)
    expect(await check({ email: 'Alice@Example.com' })).toBe(true)
    expect(await check({})).toBe(false)

    await mailCode(sql, secret, { email, publicKey, domain: 'berth.example' })
    const second = await codeOf(sql)
    const wrong = second === '000000' ? '111111' : '000000'
    for (let n = 0; n < 5; n++) expect(await check({ code: wrong })).toBe(false)
    expect(await check({ code: second })).toBe(false)

    await mailCode(sql, secret, { email, publicKey, domain: 'berth.example' })
    await sql`update email_codes set expires_at = now() - interval '1 s'`
    expect(await check({ code: await codeOf(sql) })).toBe(false)
  })

  it('are five an hour for an address and for a key', async () => {
    await using database = await testDatabase()
    const sql = database.as('berth_gateway')
    for (let n = 0; n < 5; n++) await mailCode(sql, secret, { email: 'a@example.com', publicKey, domain: 'b' })
    const other = { email: 'a@example.com', publicKey: Buffer.from('other'), domain: 'b' }
    await expect(mailCode(sql, secret, other)).rejects.toThrow('too many codes were mailed there within an hour')
    const elsewhere = { email: 'c@example.com', publicKey, domain: 'b' }
    await expect(mailCode(sql, secret, elsewhere)).rejects.toThrow('too many codes')
    await mailCode(sql, secret, { email: 'c@example.com', publicKey: Buffer.from('other'), domain: 'b' })
  })

  it('that a stranger asks for use up his own, and an address has twenty an hour', async () => {
    await using database = await testDatabase()
    const sql = database.as('berth_gateway')
    let asked = 0
    const ask = (client: string) =>
      mailCode(sql, secret, { email: 'a@example.com', publicKey: Buffer.from(`${asked++}`), domain: 'b', client })
    for (let n = 0; n < 5; n++) await ask('192.0.2.66')
    await expect(ask('192.0.2.66')).rejects.toThrow('too many codes')
    for (const client of ['192.0.2.1', '192.0.2.2', '192.0.2.3']) for (let n = 0; n < 5; n++) await ask(client)
    await expect(ask('192.0.2.4')).rejects.toThrow('too many codes')
  })
})

describe('an address', () => {
  it('has one sign, a domain, and nothing that a mail header could be made of', () => {
    for (const good of ['a@b.co', 'first.last+tag@sub.example.com', "o'hara@example.com"]) {
      expect(isEmail(good), good).toBe(true)
    }
    for (const bad of [
      '',
      'a',
      'a@b',
      'a b@c.de',
      'a@b.c\nBcc: x@y.z',
      'a@b@c.de',
      '<a@b.co>',
      'a@b..co',
      `${'x'.repeat(65)}@b.co`,
    ]) {
      expect(isEmail(bad), bad).toBe(false)
    }
  })
})
