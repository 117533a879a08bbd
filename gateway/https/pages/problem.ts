import type { Problem } from '../proxy/seams.ts'
import { type Html, html } from './html.ts'
import { page } from './page.ts'

/** Berth's own sshd, in every machine. */
const PLATFORM_SSH_PORT = 22
const PORTS_SHOWN = 20

/**
 * A page for what went wrong at a machine's host, as its visitor, who may be a stranger, should see it.
 * @param control where the control host is, `https://host:port`
 */
export function problemPage(problem: Problem, { domain, control }: { domain: string; control: string }): string {
  const { title, detail, listeningPorts, route, retryAfterS, code } = problem
  const ports = listeningPorts?.filter((port) => port !== PLATFORM_SSH_PORT).slice(0, PORTS_SHOWN) ?? []
  const name = route?.name
  return page({
    title,
    domain,
    refreshS: code === 'machine.starting' || code === 'machine.waking' ? retryAfterS : undefined,
    body: html`<h1>${title}</h1>
<p>${withCommand(detail)}</p>
${
  listeningPorts &&
  (ports.length
    ? html`<p>Programs listen on: ${ports.map((port) => html`<code>${port}</code> `)}</p>
<p class="dim">To show one of them here, its owner types <code>port ${name} ${ports[0]}</code></p>`
    : html`<p class="dim">No program in it can be reached. A server must listen on all addresses (0.0.0.0), not on 127.0.0.1 alone.</p>`)
}
${listeningPorts && name !== undefined && html`<p class="dim">Its owner can look inside: <a href="${control}/terminal/${name}">a terminal on ${name}</a></p>`}
${code === 'machine.not_found' && html`<p class="dim">Names are spelled as <code>ls</code> shows them.</p>`}`,
  })
}

/** What a sentence ends with for somebody to type is shown as such. */
function withCommand(detail: string): Html {
  const [sentence = '', command] = detail.split(/(?<= with: )/)
  return command === undefined ? html`${detail}` : html`${sentence}<code>${command}</code>`
}
