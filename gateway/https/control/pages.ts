/** The pages of the control host: signing in, the list of machines, invitations. */
import type { Invitation } from '../../accounts/shares.ts'
import type { SeenMachine } from '../../accounts/web-access.ts'
import type { WebSession } from '../../accounts/web-sessions.ts'
import { type Html, html } from '../pages/html.ts'
import { page } from '../pages/page.ts'

/** What all pages of an installation have in common. */
export type Installation = {
  domain: string
  /** `ssh -p 2222 host`, to put a command behind */
  lobby: string
  /** where a machine's primary port is shown */
  machineUrl(name: string): string
  /** mail leaves the server; otherwise its owner hands codes on */
  mails: boolean
}

export function signInPage(
  { domain, lobby, mails }: Installation,
  { next, notice }: { next: string; notice?: string | undefined },
): string {
  return page({
    title: 'Sign in',
    domain,
    body: html`<h1>Sign in</h1>
${notice !== undefined && html`<p class="notice" role="alert">${notice}</p>`}
<p>With the SSH key that you have here, type in a terminal:</p>
<pre><code>${lobby} browser</code></pre>
<p>and open the link that it prints in this browser.</p>
<h2>Or by mail</h2>
<form method="post" action="/signin">
<input type="hidden" name="next" value="${next}">
<label for="email">E-mail address</label>
<input id="email" name="email" type="email" autocomplete="email" required>
<div><button>Send me a code</button></div>
</form>
<p class="dim">${mails ? 'A code comes to addresses that are known here: your account’s, or one that something is shared with.' : 'This server sends no mail: whoever runs it reads the code to you.'}</p>`,
  })
}

export function codePage(
  { domain, mails }: Installation,
  { email, next, notice }: { email: string; next: string; notice?: string | undefined },
): string {
  return page({
    title: 'Enter the code',
    domain,
    body: html`<h1>Enter the code</h1>
${notice !== undefined && html`<p class="notice" role="alert">${notice}</p>`}
<p>If <span class="mono">${email}</span> is known here, ${mails ? 'a code of six digits is on its way to it' : 'whoever runs this server can read you a code of six digits'}. It is good for 10 minutes, in this browser.</p>
<form method="post" action="/signin/code">
<input type="hidden" name="next" value="${next}">
<input type="hidden" name="email" value="${email}">
<label for="code">Code</label>
<input id="code" name="code" inputmode="numeric" autocomplete="one-time-code" pattern="[0-9 \\-]{6,12}" required autofocus>
<div><button>Sign in</button></div>
</form>
<p><a href="/signin?${new URLSearchParams({ next }).toString()}">Another address</a></p>`,
  })
}

/** Asked before a link signs a browser in: a link that somebody else sent would sign it in as that somebody. */
export function confirmPage(
  { domain }: Installation,
  { token, who, next }: { token: string; who: string; next: string },
): string {
  return page({
    title: 'Sign in',
    domain,
    body: html`<h1>Sign this browser in?</h1>
<p>This link is for <b>${who}</b>. Go on only if you asked for it yourself.</p>
<form method="post" action="/login/${token}">
<input type="hidden" name="next" value="${next}">
<button>Sign in</button>
</form>`,
  })
}

export function machinesPage(
  installation: Installation,
  {
    session,
    machines,
    pending,
  }: { session: WebSession; machines: readonly SeenMachine[]; pending: readonly Invitation[] },
): string {
  const { domain, lobby } = installation
  const own = machines.filter(({ isOwn }) => isOwn)
  const shared = machines.filter(({ isOwn }) => !isOwn)
  return page({
    title: 'Machines',
    domain,
    corner: corner(session),
    body: html`<h1>Machines</h1>
${
  session.accountId !== null &&
  (own.length === 0
    ? html`<p>You have no machine yet. To make one, type in a terminal:</p>
<pre><code>${lobby} new demo</code></pre>`
    : html`<ul class="rows">${own.map((machine) => row(installation, machine))}</ul>`)
}
${shared.length > 0 && html`<h2>Shared with you</h2><ul class="rows">${shared.map((machine) => row(installation, machine))}</ul>`}
${pending.length > 0 && html`<h2>Offered to you</h2><ul class="rows">${pending.map((one) => html`<li>${acceptForm(one, '/')}</li>`)}</ul>`}
${session.accountId === null && shared.length + pending.length === 0 && html`<p>Nothing is shared with you any more.</p>`}
<h2>This browser</h2>
<form class="inline" method="post" action="/signout"><button class="plain">Sign out</button></form>
${EVERYWHERE}`,
  })
}

/** Leads to the page that asks. */
export const EVERYWHERE: Html = html`<a class="button plain" href="/signout/everywhere">Sign out everywhere</a>`

/** Asked before every browser of a person is signed out: there is no way back to what was open in them. */
export function everywherePage({ domain, lobby }: Installation, session: WebSession, browsers: number): string {
  const [who, they, them] =
    browsers === 1
      ? ['This browser alone is', 'it sees', 'it']
      : [`${browsers} browsers, this one too, are`, 'they see', 'them']
  return page({
    title: 'Sign out everywhere',
    domain,
    corner: corner(session),
    body: html`<h1>Sign out everywhere?</h1>
<p>${who} signed in as <b>${nameOf(session)}</b>. Signed out, ${they} nothing of your machines until you sign in there again, and terminals that are open in ${them} close. What runs in machines goes on${session.accountId !== null && ', and SSH keys and tokens stay good'}.</p>
<form class="inline" method="post" action="/signout/everywhere"><button>Sign out everywhere</button></form>
<a class="button plain" href="/list">Leave it</a>
${session.accountId !== null && html`<p class="dim">In a terminal: <code>${lobby} browser --sign-out-everywhere</code></p>`}`,
  })
}

function row({ machineUrl }: Installation, machine: SeenMachine): Html {
  const [mark, word] = stateOf(machine)
  return html`<li><a class="name mono" href="${machineUrl(machine.name)}">${machine.name}</a>
<span class="state ${mark}">${word}</span>
${machine.isOwn && html`<a href="/terminal/${machine.name}">Terminal</a>`}
${machine.isPublic && html`<span class="dim">open to everybody</span>`}
${!machine.isOwn && machine.ownerEmail !== null && html`<span class="dim">of ${machine.ownerEmail}</span>`}</li>`
}

/** Asked before a person is sent on to a machine that somebody shared with them: its owner would learn who they are. */
export function offerPage({ domain }: Installation, session: WebSession, offer: Invitation, next: string): string {
  const title = `${offer.machineName} is shared with you`
  return page({ title, domain, corner: corner(session), body: html`<h1>${title}</h1>${acceptForm(offer, next)}` })
}

function acceptForm({ shareId, machineName, email, ownerEmail }: Invitation, next: string): Html {
  return html`<form method="post" action="/share/${shareId}">
<p>${ownerEmail ?? 'Its owner'} lets you see what <code>${machineName}</code> shows; the machine is told that you are <b>${email}</b>.</p>
<input type="hidden" name="next" value="${next}">
<button>Accept ${machineName}</button>
</form>`
}

function stateOf({ state, isStarting }: SeenMachine): [mark: string, word: string] {
  if (state === 'failed') return ['bad', 'failed']
  if (isStarting) return ['wait', 'starting']
  return state === 'running' ? ['well', 'running'] : ['', state]
}

export function invitationPage(
  { domain }: Installation,
  invitation: { token: string; machineName: string; email: string; ownerEmail: string | null },
  session: WebSession | undefined,
): string {
  const { token, machineName, email, ownerEmail } = invitation
  const asAccount = session !== undefined && session.accountId !== null
  return page({
    title: `${machineName} is shared with you`,
    domain,
    corner: session && corner(session),
    body: html`<h1>${machineName} is shared with you</h1>
<p>${ownerEmail === null ? 'Its owner' : ownerEmail} lets the reader of <span class="mono">${email}</span> see what <code>${machineName}</code> shows.</p>
<form method="post" action="/invitation/${token}">
${
  asAccount
    ? html`<p>You are signed in as <b>${nameOf(session)}</b>: that account will see it.</p>`
    : html`<p>This browser will be signed in as <b>${email}</b>.</p>`
}
<button>Accept</button>
</form>`,
  })
}

/** A sentence or two and, where there is one, the way on. */
export function messagePage(
  { domain }: Pick<Installation, 'domain'>,
  { title, detail, more, session }: { title: string; detail: string; more?: Html; session?: WebSession | undefined },
): string {
  return page({
    title,
    domain,
    corner: session && corner(session),
    body: html`<h1>${title}</h1>
<p>${detail}</p>
${more}`,
  })
}

/** Seen for a moment, on the way to a machine. */
export function onwardPage({ domain }: Installation, { title, where }: { title: string; where: string }): string {
  return page({ title, domain, body: html`<h1>${title}</h1>\n<p><a href="${where}">Go on</a></p>` })
}

/** How a signed-in person is called on a page. */
export function nameOf({ emails, accountId }: WebSession): string {
  return emails[0] ?? `account ${accountId}`
}

function corner(session: WebSession): Html {
  return html`<span>${nameOf(session)}</span>`
}
