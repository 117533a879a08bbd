import type { Settings } from '../settings.ts'
import { CommandError } from './error.ts'

/** `https://example.com:8443`, without a slash: where people sign in. @throws CommandError when HTTPS is off */
export function controlUrl({ domain, https }: Settings): string {
  const [listen] = https
  if (!listen) {
    throw new CommandError('https.off', 1, 'this Berth serves nothing over HTTPS', {
      wayOn: 'the operator switches it on with BERTH_HTTPS',
    })
  }
  return `https://${domain}${listen.port === 443 ? '' : `:${listen.port}`}`
}

/** Who sees the primary port, as documents say it. */
export function visibility(isPublic: boolean): 'public' | 'private' {
  return isPublic ? 'public' : 'private'
}
