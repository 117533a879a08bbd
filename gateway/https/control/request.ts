import { cookieOf, NEXT_MOST } from '../access/fields.ts'
import type { ControlContext } from './control.ts'

/** A way to go on with, of which each character may have become three once more, and a few words. */
const MAX_BODY_BYTES = 3 * NEXT_MOST + 4096

/** One cookie of the request; the value as makeToken writes them unless told otherwise, or nothing. */
export function cookieIn(context: ControlContext, name: string, shape?: RegExp): string | undefined {
  return cookieOf([{ name: 'cookie', value: context.req.header('cookie') ?? '' }], name, shape)
}

/** Whether a page is asked for, and not a document for a program. */
export function wantsHtml(context: ControlContext): boolean {
  return /\btext\/html\b/i.test(context.req.header('accept') ?? '')
}

/**
 * The fields of a form, without control characters; `application/x-www-form-urlencoded`, which is what our pages send.
 * Of a body that is too long, or cut, no field counts.
 */
export async function formOf(context: ControlContext): Promise<(name: string) => string> {
  const form = new URLSearchParams(await bodyOf(context))
  return (name) => (form.get(name) ?? '').replace(/\p{Cc}/gu, '').trim()
}

async function bodyOf(context: ControlContext): Promise<string> {
  const chunks: Uint8Array[] = []
  let bytes = 0
  try {
    for await (const chunk of context.req.raw.body ?? []) {
      bytes += chunk.length
      if (bytes > MAX_BODY_BYTES) return ''
      chunks.push(chunk)
    }
  } catch {
    return ''
  }
  return Buffer.concat(chunks).toString('utf8')
}
