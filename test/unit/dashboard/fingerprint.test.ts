import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { isPrivateKey, readPasted } from '../../../web/src/pages/keys/fingerprint.ts'

function makeKey(type: string): { line: string; listed: string; secret: string } {
  const folder = mkdtempSync(join(tmpdir(), 'berth-key-'))
  const path = join(folder, 'key')
  try {
    execFileSync('ssh-keygen', ['-q', '-t', type, '-N', '', '-C', 'you@laptop', '-f', path])
    const listed = execFileSync('ssh-keygen', ['-lf', path], { encoding: 'utf8' })
    return { line: readFileSync(`${path}.pub`, 'utf8'), listed, secret: readFileSync(path, 'utf8') }
  } finally {
    rmSync(folder, { recursive: true })
  }
}

test.each(['ed25519', 'ecdsa', 'rsa'])('a pasted %s key has the fingerprint that ssh-keygen says', async (type) => {
  const { line, listed, secret } = makeKey(type)
  const [key, ...others] = (await readPasted(line)) ?? []
  expect(others).toEqual([])
  expect(listed.split(' ')[1]).toBe(key?.fingerprint)
  expect(key?.comment).toBe('you@laptop')
  expect([isPrivateKey(secret), isPrivateKey(line)]).toEqual([true, false])
})

test('what is no key, or half of one, is none; several in a file are several', async () => {
  const [one, two] = [makeKey('ed25519').line, makeKey('ed25519').line]
  expect(await readPasted(one.slice(0, 40))).toBeUndefined()
  expect(await readPasted(one.replace('ssh-ed25519', 'ssh-rsa'))).toBeUndefined()
  expect(await readPasted('hello')).toBeUndefined()
  expect(await readPasted('')).toBeUndefined()
  expect(await readPasted(`# mine\n${one}\n${two}`)).toHaveLength(2)
})
