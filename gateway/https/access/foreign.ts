/**
 * Whose page asks. A browser sends cookies, and a password that it remembers, along with whatever any page asks for, and
 * machines' pages are on the same site as each other's and as the control host, so SameSite keeps nobody out.
 *
 *   who asks     at a machine, by cookie    control host, reading    changing, by cookie    /events
 *   own          yes                        yes                      yes, with its Origin   yes
 *   person       yes                        yes                      forms, with its Origin no
 *   navigation   yes                        yes                      –                      no
 *   unsaid       yes                        yes                      no                     yes
 *   foreign      no                         no                       no                     no
 *
 * @see https://www.w3.org/TR/fetch-metadata/
 */
import type { IncomingHttpHeaders } from 'node:http'

/**
 * own         a page of this very origin
 * person      typed, or from a bookmark
 * navigation  a page of another origin leads a person here: what they see next is ours
 * unsaid      nothing that is a browser of today
 * foreign     a page of another origin
 */
export type Asker = 'own' | 'person' | 'navigation' | 'unsaid' | 'foreign'

/** The fields that say it, as a browser sets them and a page cannot. */
export type Said = {
  origin?: string | undefined
  'sec-fetch-site'?: string | undefined
  'sec-fetch-mode'?: string | undefined
  'sec-fetch-dest'?: string | undefined
}

/** @param own `https://host[:port]`, in lower case */
export function askerOf(method: string, said: Said, own: string): Asker {
  const { origin, 'sec-fetch-site': site } = said
  const isOther = origin !== undefined && origin.toLowerCase() !== own
  // Without fetch metadata Origin still comes with whatever another page could do harm with.
  if (site === undefined) return isOther ? 'foreign' : origin === undefined ? 'unsaid' : 'own'
  if (site === 'same-origin' || site === 'none') {
    // A page that sends no referrers sends the Origin null even to itself.
    if (isOther && origin !== 'null') return 'foreign'
    return site === 'none' ? 'person' : 'own'
  }
  const reads = method === 'GET' || method === 'HEAD'
  const navigates = reads && said['sec-fetch-mode'] === 'navigate' && said['sec-fetch-dest'] === 'document'
  return navigates ? 'navigation' : 'foreign'
}

/** The origin of the pages of the host that a request is for; HTTP/2 names it beside the fields. */
export function ownOrigin(headers: IncomingHttpHeaders): string {
  const authority = headers.host ?? headers[':authority'] ?? ''
  return `https://${String(authority).toLowerCase().replace(/:443$/, '')}`
}
