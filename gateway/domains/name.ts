import { isIP } from 'node:net'
import { domainToASCII } from 'node:url'
import type { Settings } from '../settings.ts'

/** `message` is a sentence for the person. */
export class DomainNameError extends Error {
  override readonly name = 'DomainNameError'
}

/**
 * Reads a domain as somebody types it: any case, a last dot, a scheme that was copied along, letters of any script.
 * @returns lower case, in ASCII (RFC 5891), without the last dot
 * @throws DomainNameError for what is no domain, and for the installation's own names
 */
export function readDomain(
  typed: string,
  { domain, machineDomain }: Pick<Settings, 'domain' | 'machineDomain'>,
): string {
  const bare = typed
    .trim()
    .replace(/^https?:\/\//i, '')
    .replace(/\/$/, '')
    .replace(/\.$/, '')
  const name = /[/:@\s*]/.test(bare) ? '' : domainToASCII(bare)
  const labels = name.split('.')
  const isName = labels.every((label) => /^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/.test(label))
  // Below `_acme-challenge.` and `berth-check.` there must be room.
  if (!isName || labels.length < 2 || name.length > 230 || isIP(name) !== 0 || /^\d+$/.test(labels.at(-1) ?? '')) {
    throw new DomainNameError('is no domain')
  }
  const own = [domain.toLowerCase(), machineDomain.toLowerCase()].find(
    (one) => name === one || name.endsWith(`.${one}`),
  )
  if (own !== undefined) throw new DomainNameError(`is part of ${own}, which is Berth’s own`)
  return name
}
