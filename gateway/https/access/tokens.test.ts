import { describe, expect, it } from 'vitest'
import { createToken } from '../../accounts/tokens.ts'
import { mint } from '../testing/mint.ts'
import { type Answered, startSite } from '../testing/site.ts'

describe('tokens', () => {
  it('open machines as Bearer, in X-Berth-Authorization and as Basic password, and go no further', async () => {
    await using site = await startSite()
    const { token } = await createToken(site.sql, { accountId: site.ownerId, label: '', expiresInMs: 60_000 })
    const ask = (headers: Record<string, string>) => site.browser().get(site.machine(), { mode: 'cors', headers })
    expect((await ask({ authorization: `Bearer ${token}` })).status).toBe(200)
    expect(site.asked.at(-1)?.headers.authorization).toBeUndefined()
    expect(site.asked.at(-1)?.headers['x-berth-user']).toBe(String(site.ownerId))
    expect((await ask({ authorization: `Basic ${Buffer.from(`git:${token}`).toString('base64')}` })).status).toBe(200)
    expect(site.asked.at(-1)?.headers.authorization).toBeUndefined()
    expect((await ask({ 'x-berth-authorization': `Bearer ${token}`, authorization: 'Bearer mine' })).status).toBe(200)
    expect(site.asked.at(-1)?.headers).toMatchObject({ authorization: 'Bearer mine' })
    expect(site.asked.at(-1)?.headers['x-berth-authorization']).toBeUndefined()
    expect((await ask({ authorization: 'Bearer mine' })).status).toBe(401)
    expect((await ask({ authorization: `Bearer exe1.${'0'.repeat(26)}` })).status).toBe(401)
  })

  it('for one machine, or a tag, open no other', async () => {
    await using site = await startSite()
    const otherId = await site.addMachine('other')
    await site.sql`update machines set tags = '{web}' where id = ${otherId}`
    const { token } = await createToken(site.sql, {
      accountId: site.ownerId,
      label: '',
      machineId: site.machineId,
      expiresInMs: 60_000,
    })
    const tagged = await createToken(site.sql, { accountId: site.ownerId, label: '', tag: 'web', expiresInMs: 60_000 })
    const status = async (name: string, bearer: string) =>
      (await site.browser().get(site.machine(name), { mode: 'cors', headers: { authorization: `Bearer ${bearer}` } }))
        .status
    expect([await status('demo', token), await status('other', token)]).toEqual([200, 401])
    expect([await status('demo', tagged.token), await status('other', tagged.token)]).toEqual([401, 200])
  })

  it.each(['ed25519', 'ecdsa', 'rsa'])(
    'minted offline with an %s key by ssh-keygen open the machine they are for',
    async (type) => {
      await using site = await startSite()
      await site.addMachine('other')
      const { token } = await mint(site, { type, claims: { ctx: { role: 'ci', name: 'é' } } })
      const ask = (name: string, headers: Record<string, string>): Promise<Answered> =>
        site.browser().get(site.machine(name), { mode: 'cors', headers })
      expect((await ask('demo', { authorization: `Bearer ${token}` })).status).toBe(200)
      expect(site.asked.at(-1)?.headers['x-berth-token-ctx']).toBe('{"role":"ci","name":"\\u00e9"}')
      expect((await ask('other', { authorization: `Bearer ${token}` })).status).toBe(401)
    },
  )

  it.each([
    ['expired', { exp: 1 }],
    ['good for too long', { exp: Math.round(Date.now() / 1000) + 401 * 86_400 }],
    ['not good yet', { nbf: Math.round(Date.now() / 1000) + 3600 }],
    ['without an end', { exp: undefined }],
    ['with a member that is not known', { admin: true }],
  ])('%s: refused', async (_what, claims) => {
    await using site = await startSite()
    const { token } = await mint(site, { claims })
    const answer = await site
      .browser()
      .get(site.machine(), { mode: 'cors', headers: { authorization: `Bearer ${token}` } })
    expect(answer.status).toBe(401)
  })

  it('with two members of one name, another’s signature or a byte changed: refused', async () => {
    await using site = await startSite()
    const exp = Math.round(Date.now() / 1000) + 3600
    const twice = await mint(site, { text: `{"exp":${exp},"exp":${exp}}` })
    const good = await mint(site, { claims: { exp } })
    const [prefix, , signature] = good.token.split('.')
    const forged = `${prefix}.${Buffer.from(`{"exp":${exp + 1}}`).toString('base64url')}.${signature}`
    for (const token of [twice.token, forged, `${good.token}A`, 'exe0.x', 'exe0..']) {
      const answer = await site
        .browser()
        .get(site.machine(), { mode: 'cors', headers: { authorization: `Bearer ${token}` } })
      expect(answer.status).toBe(401)
    }
  })
})
