import { isIPv4, isIPv6 } from 'node:net'
import { ImageError, printable } from './errors.ts'

/**
 * What people call an image: `[registry/]repository[:tag][@digest]`, with the defaults that everybody is used to.
 * @see https://github.com/distribution/reference/blob/main/reference.go, the grammar
 */
export type Reference = {
  /** host, with a port where one is given: what credentials are kept under */
  readonly registry: string
  /** where its API is */
  readonly apiHost: string
  readonly repository: string
  /** `latest` when neither it nor a digest is given; with a digest only for people */
  readonly tag: string | undefined
  /** of a manifest or of a list of them; decides when it is there */
  readonly digest: string | undefined
  /** everything spelled out: the same image, however it was asked for */
  readonly text: string
}

const DEFAULT_REGISTRY = 'docker.io'
/** The one registry whose API does not answer under its own name. */
const DEFAULT_API_HOST = `registry-1.${DEFAULT_REGISTRY}`

const longest = 512
const component = /^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*$/
const tagText = /^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$/
const label = /^[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?$/

/** @throws ImageError `image.reference` */
export function parseReference(text: string): Reference {
  const bad = (why: string) => new ImageError('image.reference', `"${printable(text)}" is no image: ${why}`)
  if (text.length > longest) throw bad(`it is longer than ${longest} characters`)
  const at = text.indexOf('@')
  const digest = at < 0 ? undefined : text.slice(at + 1)
  if (digest !== undefined && !isDigest(digest)) throw bad('after @ comes a digest, such as sha256: and 64 digits')
  const named = at < 0 ? text : text.slice(0, at)
  const { host, rest } = splitHost(named)
  if (host !== undefined && !isHost(host)) throw bad(`${printable(host)} is no host`)
  const colon = rest.lastIndexOf(':')
  const path = colon < 0 ? rest : rest.slice(0, colon)
  const tag = colon < 0 ? undefined : rest.slice(colon + 1)
  if (tag !== undefined && !tagText.test(tag)) throw bad('a tag has up to 128 letters, digits, and _ . -')
  if (path !== path.toLowerCase()) throw bad('the name of a repository is in lower case')
  if (path === '' || path.length > 255 || !path.split('/').every((part) => component.test(part)))
    throw bad('expected [registry/]name[:tag][@digest]')
  const registry = host === undefined || host === `index.${DEFAULT_REGISTRY}` ? DEFAULT_REGISTRY : host
  const isDefault = registry === DEFAULT_REGISTRY
  const repository = isDefault && !path.includes('/') ? `library/${path}` : path
  const shownTag = tag ?? (digest === undefined ? 'latest' : undefined)
  return {
    registry,
    apiHost: isDefault ? DEFAULT_API_HOST : registry,
    repository,
    tag: shownTag,
    digest,
    text: `${registry}/${repository}${shownTag ? `:${shownTag}` : ''}${digest ? `@${digest}` : ''}`,
  }
}

/** Digests of the two algorithms that the image specification registers. */
export function isDigest(text: string): boolean {
  return /^(?:sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})$/.test(text)
}

/** The server itself: where TLS would protect nothing. */
export function isLoopback(registry: string): boolean {
  const host = hostOf(registry)
  return host === 'localhost' || host.endsWith('.localhost') || /^127\./.test(host) || host === '::1'
}

/** Without port and brackets. */
export function hostOf(registry: string): string {
  const bracketed = /^\[([^\]]*)\](?::\d+)?$/.exec(registry)?.[1]
  return (bracketed ?? registry.replace(/:\d+$/, '')).toLowerCase()
}

/** What stands before the first slash is a host when it cannot be a part of a repository's name, or is `localhost`. */
function splitHost(text: string): { host: string | undefined; rest: string } {
  const slash = text.indexOf('/')
  const first = slash < 0 ? '' : text.slice(0, slash)
  if (first !== 'localhost' && !/[.:A-Z[]/.test(first)) return { host: undefined, rest: text }
  return { host: first, rest: text.slice(slash + 1) }
}

function isHost(text: string): boolean {
  const [, bracketed, plain, port] = /^(?:\[([^\]]+)\]|([^:[\]]+))(?::(\d{1,5}))?$/.exec(text) ?? []
  if (port !== undefined && (Number(port) < 1 || Number(port) > 65535)) return false
  if (bracketed !== undefined) return isIPv6(bracketed) && !bracketed.includes('%')
  if (plain === undefined || plain.length > 253) return false
  return isIPv4(plain) || plain.split('.').every((part) => label.test(part))
}
