import { randomBytes } from 'node:crypto'
import { describe, expect, it } from 'vitest'
import { testDatabase } from '../test/database.ts'
import { loadOrCreateSecret, readSecret, seal, unseal } from './secrets.ts'

describe('a secret', () => {
  const key = randomBytes(32)

  it('opens with its key and its name, and with nothing else', () => {
    const sealed = seal(key, 'one', Buffer.from('text'))
    expect(unseal(key, 'one', sealed).toString()).toBe('text')
    expect(() => unseal(key, 'two', sealed)).toThrow('The secret two does not open')
    expect(() => unseal(randomBytes(32), 'one', sealed)).toThrow('Put back the secret.key')
    for (let at = 0; at < sealed.length; at++) {
      const changed = Buffer.from(sealed)
      changed.writeUInt8(changed.readUInt8(at) ^ 1, at)
      expect(() => unseal(key, 'one', changed)).toThrow('does not open')
    }
    for (let length = 0; length < sealed.length; length++) {
      expect(() => unseal(key, 'one', sealed.subarray(0, length))).toThrow('does not open')
    }
    expect(seal(key, 'one', Buffer.from('text'))).not.toEqual(sealed)
  })

  it('is made once by many who want it at the same moment', async () => {
    await using database = await testDatabase()
    const sql = database.as('berth_gateway')
    const made = await Promise.all(
      Array.from({ length: 8 }, () => loadOrCreateSecret(sql, key, 'x', () => randomBytes(16))),
    )
    expect(new Set(made.map((secret) => secret.toString('hex'))).size).toBe(1)
    expect(await readSecret(sql, key, 'y')).toBeUndefined()
  })
})
