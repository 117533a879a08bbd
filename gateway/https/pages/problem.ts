import { FIRST_PORT, LAST_PORT } from '../host.ts'
import type { Problem } from '../proxy/seams.ts'
import { type Html, html } from './html.ts'
import { page } from './page.ts'

/** Berth's own sshd, in every machine. */
const PLATFORM_SSH_PORT = 22
const PORTS_SHOWN = 20

/** What passes by itself, or may: the page is loaded again after as long as a program is told to wait. */
const PASSING = new Set(['machine.starting', 'machine.waking', 'machine.no_room'])

export type ProblemPageOptions = {
  domain: string
  /** where the control host is, `https://host:port` */
  control: string
  /** where a machine's port is shown, without a slash; its primary one unless given */
  addressOf(name: string, port?: number): string
}

/** A page for what went wrong at a machine's host, as its visitor, who may be a stranger, should see it. */
export function problemPage(problem: Problem, { domain, control, addressOf }: ProblemPageOptions): string {
  const { title, detail, listeningPorts, route, retryAfterS, code } = problem
  const ports = listeningPorts?.filter((port) => port !== PLATFORM_SSH_PORT).slice(0, PORTS_SHOWN) ?? []
  const name = route?.name
  const refreshS = PASSING.has(code) ? retryAfterS : undefined
  return page({
    title,
    domain,
    refreshS,
    body: html`<h1>${title}</h1>
<p>${withCommand(detail)}${refreshS !== undefined && ' This page looks again by itself.'}</p>
${
  listeningPorts &&
  name !== undefined &&
  (ports.length
    ? html`<p>Programs listen on:</p>
<ul class="rows">${ports.map((port) => html`<li>${place(name, port, addressOf)}</li>`)}</ul>
<p class="dim">Its owner chooses what <span class="mono">${addressOf(name)}</span> shows: <code>port ${name} ${ports[0]}</code></p>`
    : html`<p class="dim">No program in it can be reached. A server must listen on all addresses (0.0.0.0), not on 127.0.0.1 alone.</p>`)
}
${listeningPorts && name !== undefined && html`<p class="dim">Its owner can look inside: <a href="${control}/terminal/${name}">a terminal on ${name}</a></p>`}
${code === 'machine.not_found' && html`<p class="dim">Names are spelled as <code>ls</code> shows them. <a href="${control}/">Machines you can see</a></p>`}
${code === 'auth.required' && html`<p>What you sent went no further. <a href="/__berth/login">Sign in</a>, then send it again.</p>`}
${code === 'auth.code' && html`<p><a href="/">Open it again</a></p>`}`,
  })
}

/** A port that has an address of its own is a link to it. */
function place(name: string, port: number, addressOf: ProblemPageOptions['addressOf']): Html {
  const hasOwn = port >= FIRST_PORT && port <= LAST_PORT
  return hasOwn
    ? html`<a class="mono" href="${addressOf(name, port)}/">${port}</a>`
    : html`<span class="mono">${port}</span>`
}

/** What a sentence ends with for somebody to type is shown as such. */
function withCommand(detail: string): Html {
  const [sentence = '', command] = detail.split(/(?<= with: )/)
  return command === undefined ? html`${detail}` : html`${sentence}<code>${command}</code>`
}
