import { expect, it } from 'vitest'
import { type Asker, askerOf, ownOrigin, type Said } from './foreign.ts'

const OWN = 'https://berth.example:8443'
const OTHER = 'https://demo.berth.example:8443'
const said = (site?: string, origin?: string, mode?: string, dest?: string): Said => ({
  ...{ origin, 'sec-fetch-site': site, 'sec-fetch-mode': mode, 'sec-fetch-dest': dest },
})

const CASES: [what: string, method: string, said: Said, asker: Asker][] = [
  ['a page’s own form', 'POST', said('same-origin', OWN, 'navigate', 'document'), 'own'],
  ['a page’s own stream', 'GET', said('same-origin', undefined, 'cors', 'empty'), 'own'],
  ['the form of a page that sends no referrers', 'POST', said('same-origin', 'null', 'navigate', 'document'), 'own'],
  ['an old browser’s own form', 'POST', said(undefined, OWN.toUpperCase()), 'own'],
  ['a typed address', 'GET', said('none', undefined, 'navigate', 'document'), 'person'],
  ['a link on another site', 'GET', said('cross-site', undefined, 'navigate', 'document'), 'navigation'],
  ['a link on a machine’s page', 'HEAD', said('same-site', OTHER, 'navigate', 'document'), 'navigation'],
  ['curl', 'POST', said(), 'unsaid'],
  ['a machine’s form', 'POST', said('same-site', OTHER, 'navigate', 'document'), 'foreign'],
  ['a frame', 'GET', said('same-site', undefined, 'navigate', 'iframe'), 'foreign'],
  ['a picture', 'GET', said('cross-site', undefined, 'no-cors', 'image'), 'foreign'],
  ['a script of another site', 'GET', said('cross-site', OTHER, 'cors', 'empty'), 'foreign'],
  ['an old browser’s foreign form', 'POST', said(undefined, OTHER), 'foreign'],
  ['an old browser’s form without an origin', 'POST', said(undefined, 'null'), 'foreign'],
  ['the same host in the clear', 'POST', said(undefined, OWN.replace('https', 'http')), 'foreign'],
  ['what contradicts itself', 'POST', said('same-origin', OTHER), 'foreign'],
  ['what contradicts itself otherwise', 'POST', said('none', OTHER), 'foreign'],
  ['a word of fetch metadata that is not known', 'GET', said('same-planet'), 'foreign'],
]

it.each(CASES)('%s is told apart', (_what, method, fields, asker) => {
  expect(askerOf(method, fields, OWN)).toBe(asker)
})

it('the pages’ own origin is the host that was asked for, in either protocol, without the port that is understood', () => {
  expect(ownOrigin({ host: 'Berth.example:443' })).toBe('https://berth.example')
  expect(ownOrigin({ ':authority': 'berth.example:8443' })).toBe(OWN)
})
