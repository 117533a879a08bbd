import { connect as connectTls } from 'node:tls'
import { expect, it, vi } from 'vitest'
import { createToken } from '../../accounts/tokens.ts'
import { isSignedBy } from '../../ssh/verify.ts'
import { mint } from '../testing/mint.ts'
import { startSite } from '../testing/site.ts'

const PATIENT = { timeout: 60_000, interval: 20 }

vi.mock('../../ssh/verify.ts', async (original) => {
  const real = await original<typeof import('../../ssh/verify.ts')>()
  return { ...real, isSignedBy: vi.fn(real.isSignedBy) }
})

it('a token’s signature is checked for keys that somebody has, and hosts that it is for', async () => {
  await using site = await startSite()
  await site.addMachine('other')
  const { token } = await mint(site, {})
  const ask = async (name: string) => {
    vi.mocked(isSignedBy).mockClear()
    const headers = { authorization: `Bearer ${token}` }
    const { status } = await site.browser().get(site.machine(name), { mode: 'cors', headers })
    return { status, checked: vi.mocked(isSignedBy).mock.calls.length }
  }
  expect(await ask('other')).toEqual({ status: 401, checked: 0 })
  expect(await ask('demo')).toEqual({ status: 200, checked: 1 })
  await site.sql`delete from keys`
  await expect.poll(() => ask('demo'), PATIENT).toEqual({ status: 401, checked: 0 })
})

it('bad tokens from one address are bounded; who is known goes on', async () => {
  await using site = await startSite()
  const make = () => createToken(site.sql, { accountId: site.ownerId, label: '', expiresInMs: 600_000 })
  const [known, other] = [await make(), await make()]
  const status = async ({ token }: { token: string }) =>
    (await site.browser().get(site.machine(), { mode: 'cors', headers: { authorization: `Bearer ${token}` } })).status
  expect(await status(known)).toBe(200)
  const socket = connectTls({ host: '127.0.0.1', port: site.port, servername: 'demo.localhost', ca: site.ca })
  let text = ''
  socket.on('data', (bytes) => {
    text += bytes.toString('latin1')
  })
  const bad = `GET / HTTP/1.1\r\nHost: demo.localhost:${site.port}\r\nAuthorization: Bearer exe1.${'0'.repeat(26)}\r\n\r\n`
  socket.write(bad.repeat(301))
  const answers = (code: number) => text.split(`HTTP/1.1 ${code} `).length - 1
  await expect.poll(() => answers(401) + answers(429), PATIENT).toBe(301)
  socket.destroy()
  expect(answers(429)).toBe(1)
  expect(text).toMatch(/retry-after: 60/i)
  expect(await status(known)).toBe(200)
  expect(await status(other)).toBe(429)
})
