import { STATUS_CODES } from 'node:http'
import type { Refused } from './gate.ts'
import type { Field } from './head.ts'
import type { Answer, Problem, Seams } from './seams.ts'

/** What goes to a client in the machine's stead, ready to be written by either protocol. */
export type Rendered = { status: number; fields: (readonly [string, string])[]; body: Buffer }

const HEADERS: readonly (readonly [string, string])[] = [
  ['Cache-Control', 'no-store'],
  ['X-Content-Type-Options', 'nosniff'],
]

/**
 * Makes a problem a page for people, when HTML is accepted, and JSON for programs.
 * @param fields of the request
 */
export function render(refused: Refused, fields: readonly Field[], page: Seams['page']): Rendered {
  if ('answer' in refused) return renderAnswer(refused.answer)
  const { problem } = refused
  const html = fields.some(({ name, value }) => name === 'accept' && /\btext\/html\b/i.test(value))
  const made = html
    ? (page ?? plainPage)(problem)
    : { text: `${JSON.stringify(problemJson(problem))}\n`, fields: HEADERS }
  const rendered = renderAnswer({
    status: problem.status,
    fields: [...made.fields, ...(problem.fields ?? [])],
    body: { type: html ? 'text/html; charset=utf-8' : 'application/json', text: made.text },
  })
  // https://www.w3.org/TR/clear-site-data/
  if (problem.clearCookies) rendered.fields.push(['Clear-Site-Data', '"cookies"'])
  if (problem.retryAfterS !== undefined) rendered.fields.push(['Retry-After', String(problem.retryAfterS)])
  return rendered
}

/** The bytes of an answer over HTTP/1.1. @param withBody false for HEAD */
export function http1Bytes({ status, fields, body }: Rendered, close: boolean, withBody: boolean): Buffer {
  let head = `HTTP/1.1 ${status} ${STATUS_CODES[status] ?? ''}\r\nDate: ${new Date().toUTCString()}\r\n`
  for (const [name, value] of fields) head += `${name}: ${value}\r\n`
  head += `Content-Length: ${body.length}\r\n${close ? 'Connection: close\r\n' : ''}\r\n`
  const bytes = Buffer.from(head, 'latin1')
  return withBody ? Buffer.concat([bytes, body]) : bytes
}

function renderAnswer({ status, fields = [], body }: Answer): Rendered {
  // A seam's value must not end the line it stands in.
  const safe = fields.filter(([name, value]) => /^[\w-]+$/.test(name) && /^[\t\x20-\x7e\x80-\xff]*$/.test(value))
  return {
    status,
    fields: body ? [...safe, ['Content-Type', body.type]] : [...safe],
    body: Buffer.from(body?.text ?? ''),
  }
}

function problemJson({ code, title, detail, listeningPorts }: Problem) {
  return { error: `${title}: ${detail}`, code, ...(listeningPorts ? { listening_ports: listeningPorts } : {}) }
}

function plainPage({ title, detail, listeningPorts, route }: Problem) {
  const ports = (listeningPorts ?? []).map((port) => `<li>${port}</li>`).join('')
  const list = ports ? `<p>${escapeHtml(route?.name ?? 'The machine')} listens on:</p><ul>${ports}</ul>` : ''
  const text = `<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark"><title>${escapeHtml(title)}</title>
<h1>${escapeHtml(title)}</h1><p>${escapeHtml(detail)}</p>${list}</html>
`
  return { text, fields: HEADERS }
}

function escapeHtml(text: string): string {
  return text.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`)
}
