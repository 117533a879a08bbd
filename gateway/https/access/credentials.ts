import { TOKEN_PREFIX } from '../../accounts/tokens.ts'
import type { Field } from '../proxy/head.ts'
import { OFFLINE_PREFIX } from './offline-token.ts'

export type Credential = {
  token: string
  /** it was in Authorization, and so goes no further */
  inAuthorization: boolean
}

/**
 * A token of ours among the fields: `X-Berth-Authorization: Bearer`, `Authorization: Bearer`, or the password of
 * `Authorization: Basic`, which is what git sends. Any other Authorization is the machine's own business.
 */
export function credentialOf(fields: readonly Pick<Field, 'name' | 'value'>[]): Credential | undefined {
  let found: Credential | undefined
  for (const { name, value } of fields) {
    if (name === 'x-berth-authorization') {
      const token = bearer(value)
      if (token !== undefined) return { token, inAuthorization: false }
    } else if (name === 'authorization') {
      const token = bearer(value) ?? password(value)
      if (token !== undefined && isOurs(token)) found ??= { token, inAuthorization: true }
    }
  }
  return found
}

function bearer(value: string): string | undefined {
  return /^bearer +(\S+)\s*$/i.exec(value)?.[1]
}

function password(value: string): string | undefined {
  const encoded = /^basic +([A-Za-z0-9+/]+={0,2})\s*$/i.exec(value)?.[1]
  if (encoded === undefined) return undefined
  const text = Buffer.from(encoded, 'base64').toString('latin1')
  const colon = text.indexOf(':')
  return colon < 0 ? undefined : text.slice(colon + 1)
}

function isOurs(token: string): boolean {
  return token.startsWith(TOKEN_PREFIX) || token.startsWith(OFFLINE_PREFIX)
}
