import { type LookupAddress, lookup } from 'node:dns'
import { Agent as HttpAgent, request as httpRequest, type IncomingMessage } from 'node:http'
import { Agent as HttpsAgent, request as httpsRequest } from 'node:https'
import { BlockList, isIP, isIPv6, type LookupFunction } from 'node:net'
import { NOT_THE_INTERNET } from '../network/ruleset.ts'
import { ImageError } from './errors.ts'
import { hostOf, isLoopback } from './reference.ts'

/**
 * Where requests of an image may go. A registry, its redirects and its token service are named by strangers, and this
 * server stands where they do not: beside its own services, in a private network, at a cloud's metadata address. So a
 * name is looked up once, and what it leads to is looked at before a connection is made; only what the operator has
 * listed goes anywhere.
 *
 * Node's own client, because it is in the program itself: other modules load parts of themselves late, when the process
 * that uses this may not read them any more.
 */
export type Reach = {
  /** @returns the answer's head; its body is the caller's to read or destroy. @throws ImageError, or what the network says */
  get(url: URL, headers: Readonly<Record<string, string>>, signal: AbortSignal): Promise<IncomingMessage>
  close(): void
}

/** Without a byte, at any time: a layer is asked for again from where it broke off. */
const silenceMs = 60_000
const socketsMost = 8

/** @param listed hosts with ports, as in the operator's file */
export function createReach(listed: readonly string[]): Reach {
  const options = { keepAlive: true, maxSockets: socketsMost }
  const http = new HttpAgent(options)
  const https = new HttpsAgent(options)
  return {
    get(url, headers, signal) {
      const isListed = listed.includes(url.host) || listed.includes(url.hostname)
      assertGood(url, isListed)
      const { promise, resolve, reject } = Promise.withResolvers<IncomingMessage>()
      const common = {
        headers: { 'user-agent': 'berth', ...headers },
        signal,
        ...(isListed ? {} : { lookup: lookupOutside }),
      }
      const sent =
        url.protocol === 'http:'
          ? httpRequest(url, { ...common, agent: http })
          : httpsRequest(url, { ...common, agent: https })
      sent.setTimeout(silenceMs, () =>
        sent.destroy(Object.assign(new Error('nothing came for a minute'), { code: 'ETIMEDOUT' })),
      )
      sent.once('error', reject)
      sent.once('response', resolve)
      sent.end()
      return promise
    },
    close() {
      http.destroy()
      https.destroy()
    },
  }
}

function assertGood(url: URL, isListed: boolean): void {
  const host = hostOf(url.host)
  const isLocal = isLoopback(url.host)
  if (url.username !== '' || !['http:', 'https:'].includes(url.protocol))
    throw new ImageError('image.unreachable', `The registry leads to a place that is none: ${url.protocol}`)
  // A literal address is never looked up, and so would never be looked at.
  if (!isListed && (isLocal || (isIP(host) > 0 && isPrivate(host))))
    throw new ImageError(
      'image.unreachable',
      `${url.host} is in a private network: the operator has not listed it in registries.json`,
    )
  if (url.protocol === 'http:' && !isLocal)
    throw new ImageError('image.unreachable', `${url.host} is asked over HTTPS only`)
}

export class PrivateAddressError extends Error {
  override readonly name = 'PrivateAddressError'
}

const lookupOutside: LookupFunction = (hostname, options, callback) => {
  lookup(hostname, { ...options, all: true }, (error, found: LookupAddress[]) => {
    if (error) {
      callback(error, [])
      return
    }
    const good = found.filter(({ address }) => !isPrivate(address))
    const [first] = good
    if (!first) callback(new PrivateAddressError(`${hostname} is in a private network`), [])
    else if (options.all) callback(null, good)
    else callback(null, first.address, first.family)
  })
}

/** @see https://www.iana.org/assignments/iana-ipv4-special-registry and iana-ipv6-special-registry */
const special4 = new BlockList()
const special6 = new BlockList()
for (const range of NOT_THE_INTERNET) {
  const [network = '', prefix] = range.split('/')
  special4.addSubnet(network, Number(prefix), 'ipv4')
}
// Everything that is not unicast out of 2000::/3, and in it the transitions that carry an IPv4 address.
for (const [network, prefix] of [
  ['::', 3],
  ['2001::', 32],
  ['2001:db8::', 32],
  ['2002::', 16],
  ['4000::', 2],
  ['8000::', 1],
] as const)
  special6.addSubnet(network, prefix, 'ipv6')

export function isPrivate(address: string): boolean {
  return isIPv6(address) ? special6.check(address, 'ipv6') : special4.check(address, 'ipv4')
}
