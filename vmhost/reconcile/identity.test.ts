import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { authorizedKeyLine, makeHostKey, parsePublicKeyLine, publicPart } from './identity.ts'

test('OpenSSH reads the host keys, whatever their padding, and finds the same public part', () => {
  const folder = mkdtempSync(join(tmpdir(), 'berth-key-'))
  try {
    for (const comment of ['', 'a', 'ab', 'demo@berth', 'twelve chars']) {
      const key = makeHostKey(comment)
      const path = join(folder, `key-${comment.length}`)
      writeFileSync(path, key.privateKey, { mode: 0o600 })
      const line = execFileSync('ssh-keygen', ['-y', '-f', path], { encoding: 'utf8' }).trim()
      expect(line.split(' ')[1]).toBe(key.publicKey.toString('base64'))
      expect(publicPart(key.privateKey)).toEqual(key.publicKey)
      expect(parsePublicKeyLine(line)).toBe(authorizedKeyLine(key.publicKey))
    }
  } finally {
    rmSync(folder, { recursive: true })
  }
})

test('a key from the database cannot smuggle options or a second line in', () => {
  const wire = (name: string) =>
    Buffer.concat([Buffer.from([0, 0, 0, name.length]), Buffer.from(name), Buffer.from('rest')])
  expect(authorizedKeyLine(wire('ssh-ed25519'))).toMatch(/^ssh-ed25519 [A-Za-z0-9+/=]+$/)
  expect(authorizedKeyLine(wire('sk-ssh-ed25519@openssh.com'))).toMatch(/^sk-ssh-ed25519@openssh\.com /)
  for (const name of ['command="x" ssh-rsa', 'ssh-rsa\nssh-rsa', '', 'a b'])
    expect(authorizedKeyLine(wire(name))).toBeUndefined()
  expect(authorizedKeyLine(Buffer.from([0, 0]))).toBeUndefined()
  expect(parsePublicKeyLine('not a key')).toBeUndefined()
})
