import type { Field } from '../proxy/head.ts'

/** Berth's cookie on every host; each host has its own (RFC 6265bis, 4.1.3.2: no other host can set it). */
export const COOKIE = '__Host-berth'
/** Remembers that this browser set out to sign in; its value is proved at the return. */
export const STATE_COOKIE = '__Host-berth-state'
/** 256 random bits, as makeToken writes them. */
const TOKEN = /^[A-Za-z0-9_-]{43}$/

/** A cookie's value, where it looks like one of ours: like a token, unless another shape is given. */
export function cookieOf(
  fields: readonly Pick<Field, 'name' | 'value'>[],
  name: string,
  shape = TOKEN,
): string | undefined {
  for (const field of fields) {
    if (field.name !== 'cookie') continue
    for (const pair of field.value.split(';')) {
      const equals = pair.indexOf('=')
      if (pair.slice(0, equals).trim() !== name) continue
      const value = pair.slice(equals + 1).trim()
      if (shape.test(value)) return value
    }
  }
  return undefined
}

/** @param maxAgeS 0 removes it; undefined: until the browser is closed */
export function setCookie(name: string, value: string, maxAgeS?: number): [name: string, value: string] {
  const age = maxAgeS === undefined ? '' : `; Max-Age=${maxAgeS}`
  return ['Set-Cookie', `${name}=${value}; Path=/; Secure; HttpOnly; SameSite=Lax${age}`]
}

export function fieldOf(fields: readonly Field[], name: string): string | undefined {
  return fields.find((field) => field.name === name)?.value
}

/** Whether a person's browser is to show what is answered, as far as the request says. */
export function isNavigation(method: string, fields: readonly Field[]): boolean {
  if (method !== 'GET' && method !== 'HEAD') return false
  const mode = fieldOf(fields, 'sec-fetch-mode')
  if (mode !== undefined) return mode === 'navigate'
  return /\btext\/html\b/i.test(fieldOf(fields, 'accept') ?? '')
}

const PATH_MOST = 4096
/** A way to a machine's host with such a path in it, of which each character may have become three. */
export const NEXT_MOST = 3 * PATH_MOST + 1024

/**
 * A path of the same host that a browser may be sent to: `/…`, and nothing that it would take for another host
 * (`//host`, `/\host`) or that could end a header line.
 */
export function safePath(path: string | null | undefined, most = PATH_MOST): string {
  return path && path.length <= most && /^\/(?![/\\])[\x21-\x7e]*$/.test(path) ? path : '/'
}

/** Where somebody at the control host was going. */
export function nextPath(path: string | null | undefined): string {
  return safePath(path, NEXT_MOST)
}
