import { execFileSync } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { addKey } from '../../accounts/keys.ts'
import { parseKeyLine } from '../../accounts/public-key.ts'
import type { Site } from './site.ts'

let minted = 0

/** A token as a person makes it, with the real ssh-keygen. */
export async function mint(
  site: Site,
  { type = 'ed25519', claims = {}, text }: { type?: string; claims?: Record<string, unknown>; text?: string },
) {
  const { gateway } = site
  const keyPath = gateway.makeKey(`minter-${minted++}`, type, type === 'rsa' ? 3072 : undefined)
  await addKey(site.sql, site.ownerId, parseKeyLine(gateway.publicKey(keyPath)))
  const payload = text ?? JSON.stringify({ exp: Math.round(Date.now() / 1000) + 3600, ...claims })
  const file = join(gateway.directory, `payload-${minted++}`)
  writeFileSync(file, payload)
  execFileSync('ssh-keygen', ['-Y', 'sign', '-q', '-f', keyPath, '-n', 'v0@demo.localhost', file], { stdio: 'ignore' })
  const armored = readFileSync(`${file}.sig`, 'utf8')
  const blob = Buffer.from(armored.replace(/-----[^-]+-----/g, ''), 'base64').toString('base64url')
  return { token: `exe0.${Buffer.from(payload).toString('base64url')}.${blob}`, keyPath }
}
