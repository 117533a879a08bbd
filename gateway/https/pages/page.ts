import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Html, html } from './html.ts'

/** A style of ours as pages carry it; its hash lets it, and no other, count. */
export type Sheet = { text: string; hash: string }

/** Read while the process may still read its checkout: it gives root up before it serves. */
export function readSheet(...names: readonly string[]): Sheet {
  const pages = join(import.meta.dirname, '../../../web/pages')
  const text = squeeze(names.map((name) => readFileSync(join(pages, name), 'utf8')).join('\n'))
  return { text, hash: createHash('sha256').update(text).digest('base64') }
}

const STYLE = readSheet('shared.css', 'page.css')

export type Page = {
  title: string
  /** the installation's name, which heads the page */
  domain: string
  body: Html
  /** stands at the top right */
  corner?: Html | undefined
  /** the page looks again by itself after this long */
  refreshS?: number | undefined
  /** for this page alone, after that of all; pageFields must know of it */
  sheet?: Sheet | undefined
}

/** A whole page: one file, no script, nothing to be fetched. */
export function page({ title, domain, body, corner, refreshS, sheet }: Page): string {
  return html`<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="robots" content="noindex">
${refreshS === undefined ? undefined : html`<meta http-equiv="refresh" content="${refreshS}">\n`}<title>${title} · ${domain}</title>
<style>${new Html(STYLE.text)}</style>
${sheet && html`<style>${new Html(sheet.text)}</style>\n`}</head>
<body>
<header><span>Berth at <span class="mono">${domain}</span></span>${corner}</header>
<main>
${body}
</main>
</body>
</html>
`.text
}

/**
 * What every page of ours is sent with: never kept, never framed, nothing loaded, forms only to where they belong.
 * The referrer stays on the origin: with `no-referrer` a form's Origin would be `null`.
 */
export function pageFields(sheet?: Sheet): [name: string, value: string][] {
  const hashes = [STYLE, sheet].flatMap((one) => (one ? `'sha256-${one.hash}'` : []))
  return [
    [
      'Content-Security-Policy',
      `default-src 'none'; style-src ${hashes.join(' ')}; form-action 'self'; frame-ancestors 'none'; base-uri 'none'`,
    ],
    ['X-Frame-Options', 'DENY'],
    ['X-Content-Type-Options', 'nosniff'],
    ['Referrer-Policy', 'same-origin'],
    ['Cross-Origin-Opener-Policy', 'same-origin'],
    ['Cross-Origin-Resource-Policy', 'same-origin'],
    ['Cache-Control', 'no-store'],
  ]
}

/**
 * What sends a browser on that has just sent a form, beside a page with a link there. To the browser a redirect is part of
 * the form's way, and the policy of the page that had the form (CSP 3, form-action) holds for all of it, so that a
 * machine's page that redirects to another site's would not be shown.
 */
export function onwardField(where: string): [name: string, value: string] {
  return ['Refresh', `0; url=${where}`]
}

function squeeze(css: string): string {
  return css
    .replace(/\/\*.*?\*\//gs, '')
    .replace(/\s+/g, ' ')
    .replace(/ ?([{};:,>]) ?/g, '$1')
    .trim()
}
