import type { Settings } from '../settings.ts'

/** What a host name stands for. `port` is the machine's port that was asked for, undefined for its primary one. */
export type Site =
  | { kind: 'control' }
  | { kind: 'machine'; name: string; port: number | undefined }
  | { kind: 'domain'; domain: string; port: number | undefined }

/** A Host or :authority as we compare it: lower case, no trailing dot; `port` undefined when none was written. */
export type Authority = { host: string; port: number | undefined }

export const FIRST_PORT = 3000
export const LAST_PORT = 9999

/**
 * Reads a Host header or :authority (RFC 9110, 7.2). User information, empty names, ports out of range and anything
 * but letters, digits, hyphens, dots or a bracketed IPv6 address is refused.
 * @returns undefined when malformed
 */
export function parseAuthority(text: string): Authority | undefined {
  const match = /^(?:([a-z0-9_-]+(?:\.[a-z0-9_-]+)*)\.?|(\[[0-9a-f:.]{2,45}\]))(?::(\d{1,5}))?$/i.exec(text)
  const host = match?.[1] ?? match?.[2]
  if (host === undefined || host.length > 253) return undefined
  const port = match?.[3] === undefined ? undefined : Number(match[3])
  return port !== undefined && (port < 1 || port > 65535) ? undefined : { host: host.toLowerCase(), port }
}

/**
 * Which site an authority names. `NAME--PORT` and a port of 3000-9999 in the authority name a machine's port, except
 * where that port is one the listener itself has: then it is only how the browser got here.
 * @param listenPorts ports of the HTTPS listeners as clients see them
 */
export function siteOf(
  { host, port }: Authority,
  settings: Pick<Settings, 'domain' | 'machineDomain'>,
  listenPorts: ReadonlySet<number>,
): Site {
  if (host === settings.domain.toLowerCase()) return { kind: 'control' }
  const asked =
    port !== undefined && port >= FIRST_PORT && port <= LAST_PORT && !listenPorts.has(port) ? port : undefined
  const suffix = `.${settings.machineDomain.toLowerCase()}`
  if (!host.endsWith(suffix)) return { kind: 'domain', domain: host, port: asked }
  const label = host.slice(0, -suffix.length)
  const dashes = /^(.+)--(\d{4})$/.exec(label)
  const dashed = dashes ? Number(dashes[2]) : undefined
  if (dashes?.[1] !== undefined && dashed !== undefined && dashed >= FIRST_PORT && dashed <= LAST_PORT) {
    return { kind: 'machine', name: dashes[1], port: dashed }
  }
  return { kind: 'machine', name: label, port: asked }
}
