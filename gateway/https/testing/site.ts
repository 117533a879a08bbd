/**
 * A gateway that serves HTTPS over a real Postgres, a machine whose port is a real server on loopback, and browsers
 * that do what browsers do: cookies by host, redirects, Origin and fetch metadata.
 */
import { once } from 'node:events'
import { createServer, type IncomingHttpHeaders, type IncomingMessage, type RequestListener } from 'node:http'
import { request as requestTls } from 'node:https'
import type { AddressInfo } from 'node:net'
import type { Duplex } from 'node:stream'
import { connect as connectTls } from 'node:tls'
import type { Sql } from '../../../migrations/connect.ts'
import { startTestGateway, type TestGateway } from '../../../test/gateway.ts'
import { createSignInLink } from '../../accounts/web-sessions.ts'
import type { Finished } from '../proxy/context.ts'

export type Site = {
  gateway: TestGateway
  sql: Sql
  port: number
  /** `https://localhost:<port>` */
  control: string
  /** `https://demo.localhost:<port>` */
  machine(name?: string): string
  ownerId: number
  machineId: number
  /** root certificate that the gateway wrote */
  ca: string
  /** what machines were asked, in order */
  asked: Asked[]
  browser(): Browser
  /** a browser that is signed in as the account */
  signedIn(accountId?: number): Promise<Browser>
  addMachine(
    name: string,
    accountId?: number,
    options?: { state?: 'running' | 'stopped' | 'creating' | 'failed' },
  ): Promise<number>
  account(email?: string): Promise<number>
  [Symbol.asyncDispose](): Promise<void>
}

export type Asked = { host: string; method: string; url: string; headers: IncomingHttpHeaders }

export type SiteOptions = {
  env?: Record<string, string>
  /** name servers that are asked about people's domains */
  resolvers?: readonly string[]
  /** hears of each exchange that is over */
  finished?: (exchange: Finished) => void
  origin?: RequestListener
  upgrade?: (request: IncomingMessage, socket: Duplex) => void
}

/** `await using site = await startSite()` */
export async function startSite(options: SiteOptions = {}): Promise<Site> {
  const asked: Asked[] = []
  const origin = createServer((request, response) => {
    asked.push({
      host: request.headers.host ?? '',
      method: request.method ?? '',
      url: request.url ?? '',
      headers: request.headers,
    })
    if (options.origin) options.origin(request, response)
    else response.setHeader('content-type', 'text/plain').end(`machine says ${request.method} ${request.url}`)
  })
  if (options.upgrade) origin.on('upgrade', options.upgrade)
  origin.listen(0, '0.0.0.0')
  await once(origin, 'listening')
  const originPort = (origin.address() as AddressInfo).port
  const gateway = await startTestGateway({
    https: true,
    ...(options.env ? { env: options.env } : {}),
    ...(options.resolvers ? { resolvers: options.resolvers } : {}),
    ...(options.finished ? { access: { write: options.finished, close: () => {} } } : {}),
  })
  const { sql } = gateway
  const port = gateway.https?.server.addresses[0]?.port ?? 0
  const [setting] = await sql<{ value: string }[]>`select value from settings where key = 'ca_certificate'`
  const ca = setting?.value ?? ''
  const ownerId = await gateway.addAccount({ owner: true })
  const site: Site = {
    gateway,
    sql,
    port,
    control: `https://localhost:${port}`,
    machine: (name = 'demo') => `https://${name}.localhost:${port}`,
    ownerId,
    machineId: 0,
    ca,
    asked,
    browser: () => new Browser(ca),
    async signedIn(accountId = ownerId) {
      const browser = site.browser()
      const token = await createSignInLink(sql, accountId)
      const page = await browser.get(`${site.control}/login/${token}`)
      const answer = await browser.submit(page)
      if (answer.status !== 200) throw new Error(`not signed in: ${answer.status}`)
      return browser
    },
    async addMachine(name, accountId = ownerId, { state = 'running' } = {}) {
      const id = await gateway.addMachine(accountId, name, { state })
      await sql`update machines set web_port = ${originPort} where id = ${id}`
      return id
    },
    async account(email) {
      const id = await gateway.addAccount()
      if (email !== undefined) {
        await sql`update accounts set email = ${email}, email_proved_at = now() where id = ${id}`
      }
      return id
    },
    async [Symbol.asyncDispose]() {
      await gateway[Symbol.asyncDispose]()
      origin.closeAllConnections()
      origin.close()
    },
  }
  site.machineId = await site.addMachine('demo')
  return site
}

export type Answered = {
  url: string
  status: number
  headers: IncomingHttpHeaders
  text: string
}

export type Sending = {
  method?: string
  headers?: Record<string, string>
  body?: string
  /** false: redirects are shown and not followed */
  follow?: boolean
  /** the page that causes it; a person who types an address unless given */
  from?: string
  /** a fetch by script, rather than a navigation */
  mode?: 'navigate' | 'cors' | 'no-cors'
}

const HOPS_MOST = 8

/** Keeps cookies as a browser does and goes where it is sent. Every host is on loopback. */
export class Browser {
  readonly #ca: string
  /** by host, without the port, as cookies are */
  readonly cookies = new Map<string, Map<string, string>>()
  /** addresses of the last navigation, in order */
  trail: string[] = []

  constructor(ca: string) {
    this.#ca = ca
  }

  get(url: string, sending: Sending = {}): Promise<Answered> {
    return this.send(url, sending)
  }

  /** Sends the page's form: the one whose action has `action` in it, or the first. */
  submit(
    page: Answered,
    values: Record<string, string> = {},
    action = '',
    { follow }: Pick<Sending, 'follow'> = {},
  ): Promise<Answered> {
    const forms = [...page.text.matchAll(/<form[^>]*action="([^"]*)"[^>]*>(.*?)<\/form>/gs)]
    const form = forms.find(([, target]) => target?.includes(action))
    if (!form) throw new Error(`no form ${action} in:\n${page.text}`)
    const fields = new URLSearchParams()
    for (const [, name = '', value = ''] of (form[2] ?? '').matchAll(
      /<input type="hidden" name="([^"]*)" value="([^"]*)"/g,
    ))
      fields.set(name, unescapeHtml(value))
    for (const [name, value] of Object.entries(values)) fields.set(name, value)
    return this.send(new URL(unescapeHtml(form[1] ?? ''), page.url).href, {
      method: 'POST',
      body: fields.toString(),
      headers: { 'content-type': 'application/x-www-form-urlencoded' },
      from: page.url,
      ...(follow === undefined ? {} : { follow }),
    })
  }

  async send(url: string, sending: Sending = {}): Promise<Answered> {
    this.trail = []
    let { method = 'GET', body } = sending
    let at = new URL(url)
    for (let hop = 0; hop < HOPS_MOST; hop++) {
      this.trail.push(at.href)
      const answer = await this.#once(at, { ...sending, method, ...(body === undefined ? {} : { body }) })
      const refresh = /^0; url=(.*)$/.exec(String(answer.headers.refresh ?? ''))?.[1]
      const isRedirect = answer.status >= 300 && answer.status <= 399
      const location = isRedirect ? answer.headers.location : refresh
      if (sending.follow === false || location === undefined) return answer
      at = new URL(location, at)
      method = 'GET'
      body = undefined
    }
    throw new Error(`redirected too often:\n${this.trail.join('\n')}`)
  }

  #once(url: URL, { method = 'GET', headers = {}, body, from, mode = 'navigate' }: Sending): Promise<Answered> {
    const cookies = [...(this.cookies.get(url.hostname) ?? [])].map(([name, value]) => `${name}=${value}`)
    const request = requestTls(url, {
      method,
      ca: this.#ca,
      agent: false,
      servername: url.hostname,
      lookup: (_host, _options, callback) => callback(null, [{ address: '127.0.0.1', family: 4 }]),
      headers: {
        accept: mode === 'navigate' ? 'text/html,*/*;q=0.8' : '*/*',
        'sec-fetch-mode': mode,
        'sec-fetch-dest': mode === 'navigate' ? 'document' : 'empty',
        'sec-fetch-site': from === undefined ? 'none' : siteOf(new URL(from), url),
        ...(cookies.length > 0 ? { cookie: cookies.join('; ') } : {}),
        ...(from !== undefined && (method !== 'GET' || mode === 'cors') ? { origin: new URL(from).origin } : {}),
        ...(body === undefined ? {} : { 'content-length': String(Buffer.byteLength(body)) }),
        ...headers,
      },
    })
    return new Promise((resolve, reject) => {
      request.once('error', reject)
      request.once('response', (response) => {
        let text = ''
        response.setEncoding('utf8')
        response.on('data', (chunk: string) => {
          text += chunk
        })
        response.once('error', reject)
        response.once('end', () => {
          this.#keep(url.hostname, response.headers['set-cookie'] ?? [])
          resolve({ url: url.href, status: response.statusCode ?? 0, headers: response.headers, text })
        })
      })
      request.end(body)
    })
  }

  #keep(host: string, lines: readonly string[]): void {
    for (const line of lines) {
      const [pair = '', ...attributes] = line.split(';').map((part) => part.trim())
      const [name = '', value = ''] = pair.split(/=(.*)/s)
      const names = attributes.map((attribute) => attribute.toLowerCase())
      if (name.startsWith('__Host-') && !(names.includes('secure') && names.includes('path=/'))) continue
      if (names.some((attribute) => attribute.startsWith('domain='))) throw new Error(`a cookie for a domain: ${line}`)
      const jar = this.cookies.get(host) ?? new Map<string, string>()
      this.cookies.set(host, jar)
      if (names.includes('max-age=0')) jar.delete(name)
      else jar.set(name, value)
    }
  }
}

/** The names that the certificate for a host is good for, as Node shows them: `DNS:a.example, DNS:b.example`. */
export async function certificateNames(site: Site, host: string): Promise<string | undefined> {
  const socket = connectTls({ host: '127.0.0.1', port: site.port, servername: host, ca: site.ca })
  await once(socket, 'secureConnect')
  const { subjectaltname } = socket.getPeerCertificate()
  socket.destroy()
  return subjectaltname
}

/** The cookie that opens a machine, as a Cookie field has it. */
export function cookieOf(browser: Browser, name = 'demo'): string {
  return `__Host-berth=${browser.cookies.get(`${name}.localhost`)?.get('__Host-berth')}`
}

/** @see https://html.spec.whatwg.org/#same-site, with `localhost` as the registrable domain */
function siteOf(from: URL, to: URL): string {
  if (from.origin === to.origin) return 'same-origin'
  const registrable = (host: string) => host.split('.').at(-1)
  return registrable(from.hostname) === registrable(to.hostname) ? 'same-site' : 'cross-site'
}

function unescapeHtml(text: string): string {
  return text.replace(/&#(\d+);/g, (_whole, code) => String.fromCharCode(Number(code)))
}
