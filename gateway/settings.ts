import { isIP } from 'node:net'
import { z } from 'zod'

/** One address to listen on; no host means every address, IPv6 and IPv4. */
export type Listen = { host?: string; port: number }

export type Settings = {
  dataDirectory: string
  databaseUrl: string
  /** control host */
  domain: string
  /** machines are `<name>.<machineDomain>` */
  machineDomain: string
  ssh: Listen[]
  https: Listen[]
  http: Listen[]
  /** whether `https://<machine>:3000-9999` is redirected */
  ports: boolean
  dns: Listen[]
  /** ACME directory URL; undefined: Berth's own CA */
  acme: string | undefined
  /** pool of public addresses for SSH routing by (key, address) */
  addresses: string[]
  /** machine addresses, IPv4 CIDR */
  network: string
  /** key lines or paths of key files; undefined: the starter's own */
  owner: string | undefined
  signup: 'invite' | 'open' | 'closed'
  smtp: string | undefined
  stripe: StripeSettings | undefined
  metrics: Listen[]
  logLevel: string
  drainMs: number
}

export type StripeSettings = {
  /** secret or restricted key; it says whether money is moved (`_live_`) or it is a test */
  key: string
  /** Stripe's own unless given */
  host: { protocol: 'http' | 'https'; host: string; port: number } | undefined
  /** what the webhook's events are signed with; several while one takes another's place */
  webhookSecrets: readonly string[]
}

/** `message` is one line: the variable, its value, what was expected. */
export class SettingsError extends Error {
  override readonly name = 'SettingsError'
}

const LETS_ENCRYPT = {
  letsencrypt: 'https://acme-v02.api.letsencrypt.org/directory',
  'letsencrypt-staging': 'https://acme-staging-v02.api.letsencrypt.org/directory',
}

/** Values of these hold credentials; an error shows the name alone. */
const SECRET = new Set(['DATABASE_URL', 'BERTH_SMTP', 'BERTH_STRIPE_KEY', 'BERTH_STRIPE_WEBHOOK'])

/**
 * Reads the gateway's variables (README, "Settings"), also those that are used only later, so that a bad value stops
 * the start and not the first use. An empty value is the same as none.
 * @throws SettingsError naming the variable, its value and what was expected
 */
export function parseSettings(env: Record<string, string | undefined>): Settings {
  const given = Object.fromEntries(Object.entries(env).filter(([, value]) => value !== undefined && value !== ''))
  const parsed = variables.safeParse(given)
  if (!parsed.success) throw new SettingsError(sentence(parsed.error, given))
  const v = parsed.data
  const https = v.BERTH_HTTPS
  return {
    dataDirectory: v.BERTH_DATA,
    databaseUrl: v.DATABASE_URL,
    domain: v.BERTH_DOMAIN,
    machineDomain: v.BERTH_MACHINE_DOMAIN ?? v.BERTH_DOMAIN,
    ssh: v.BERTH_SSH,
    https,
    http: v.BERTH_HTTP,
    ports: v.BERTH_PORTS ?? https.some((listen) => listen.port === 443),
    dns: v.BERTH_DNS,
    acme: v.BERTH_ACME,
    addresses: v.BERTH_ADDRESSES,
    network: v.BERTH_NETWORK,
    owner: v.BERTH_OWNER,
    signup: v.BERTH_SIGNUP,
    smtp: v.BERTH_SMTP,
    stripe: v.BERTH_STRIPE_KEY
      ? { key: v.BERTH_STRIPE_KEY, host: v.BERTH_STRIPE_HOST, webhookSecrets: v.BERTH_STRIPE_WEBHOOK }
      : undefined,
    metrics: v.BERTH_METRICS,
    logLevel: v.BERTH_LOG,
    drainMs: v.BERTH_DRAIN,
  }
}

/**
 * `:2222`, `2222`, `127.0.0.1:2222`, `[::1]:2222`, `host.example:2222`; several separated by commas. `off` is none.
 * Port 0 is taken: the system chooses, which tests use.
 */
export function parseListen(text: string): Listen[] | undefined {
  if (text === 'off') return []
  const listens: Listen[] = []
  for (const part of text.split(',').map((piece) => piece.trim())) {
    const match = /^(?:(?:\[([^\]]+)\]|([^:[\]]*)):)?(\d{1,5})$/.exec(part)
    if (!match) return undefined
    const [, six, other, digits] = match
    const port = Number(digits)
    if (port > 65535 || (six !== undefined && isIP(six) !== 6)) return undefined
    if (other && other !== '*' && isIP(other) === 0 && !isHostName(other)) return undefined
    const host = six ?? (other === '' || other === '*' ? undefined : other)
    listens.push(host === undefined ? { port } : { host, port })
  }
  return listens
}

/** `500ms`, `30s`, `5m`, `1h`, `7d`; a bare number is seconds. */
export function parseDurationMs(text: string): number | undefined {
  const match = /^(\d{1,9}(?:\.\d{1,3})?)(ms|s|m|h|d)?$/.exec(text.trim())
  if (!match) return undefined
  const unit = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 }[match[2] ?? 's'] ?? 1000
  const durationMs = Math.round(Number(match[1]) * unit)
  return Number.isSafeInteger(durationMs) ? durationMs : undefined
}

/** `host`, `host:port`; without TLS on loopback alone, since the key goes with each call. */
function parseApiHost(text: string): NonNullable<StripeSettings['host']> | undefined {
  const match = /^(?:(https?):\/\/)?([a-z0-9.-]+)(?::(\d{1,5}))?\/?$/i.exec(text)
  if (!match) return undefined
  const [, scheme = 'https', host = '', digits] = match
  const protocol = scheme.toLowerCase() === 'http' ? 'http' : 'https'
  if (!isHostName(host) || (protocol === 'http' && host !== '127.0.0.1' && host !== 'localhost')) return undefined
  const port = digits === undefined ? (protocol === 'http' ? 80 : 443) : Number(digits)
  return port > 0 && port < 65536 ? { protocol, host: host.toLowerCase(), port } : undefined
}

const listenList = (fallback: string) =>
  z
    .string()
    .default(fallback)
    .transform((text, ctx) => parseListen(text) ?? expected(ctx, 'addresses such as :2222 or 127.0.0.1:2222, or off'))
const hostName = z.string().refine(isHostName, 'expected a host name such as berth.example.com').toLowerCase()
const url = (...schemes: string[]) =>
  z
    .string()
    .refine(
      (text) => URL.canParse(text) && schemes.includes(new URL(text).protocol.slice(0, -1)),
      `expected a URL beginning with ${schemes.map((scheme) => `${scheme}://`).join(' or ')}`,
    )
const addressList = z
  .string()
  .default('')
  .transform((text, ctx) => {
    const addresses = text === '' ? [] : text.split(',').map((piece) => piece.trim())
    return addresses.every((address) => isIP(address)) ? addresses : expected(ctx, 'IP addresses separated by commas')
  })
const choice = <const T extends readonly [string, ...string[]]>(...words: T) =>
  z.enum(words, `expected one of ${words.join(', ')}`)

const variables = z.object({
  BERTH_DATA: z.string().startsWith('/', 'expected an absolute path').default('/var/lib/berth'),
  DATABASE_URL: z
    .string('expected a postgres:// URL; npm start sets it for the embedded server')
    .refine((text) => /^postgres(ql)?:\/\//.test(text) && URL.canParse(text), 'expected a postgres:// URL'),
  BERTH_DOMAIN: hostName.default('localhost'),
  BERTH_MACHINE_DOMAIN: hostName.optional(),
  BERTH_SSH: listenList(':2222').refine((listens) => listens.length > 0, 'expected at least one address to listen on'),
  BERTH_HTTPS: listenList(':8443'),
  BERTH_HTTP: listenList(':8080'),
  BERTH_DNS: listenList('off'),
  BERTH_METRICS: listenList('127.0.0.1:9464'),
  BERTH_PORTS: choice('on', 'off')
    .transform((word) => word === 'on')
    .optional(),
  BERTH_ACME: z
    .string()
    .optional()
    .transform((text, ctx) => {
      if (text === undefined || text === 'off') return undefined
      if (text in LETS_ENCRYPT) return LETS_ENCRYPT[text as keyof typeof LETS_ENCRYPT]
      if (URL.canParse(text) && text.startsWith('https://')) return text
      return expected(ctx, 'off, letsencrypt, letsencrypt-staging or the https:// URL of an ACME directory')
    }),
  BERTH_ADDRESSES: addressList,
  BERTH_NETWORK: z
    .string()
    .default('10.42.0.0/16')
    .refine(isIpv4Network, 'expected an IPv4 network such as 10.42.0.0/16, at least a /28, host bits zero'),
  BERTH_OWNER: z.string().optional(),
  BERTH_SIGNUP: choice('invite', 'open', 'closed').default('invite'),
  BERTH_SMTP: url('smtp', 'smtps').optional(),
  BERTH_STRIPE_KEY: z
    .string()
    .regex(
      /^(sk|rk)_([a-z]+_)?(test|live)_[A-Za-z0-9]+$/,
      'expected a secret or restricted key of Stripe: sk_… or rk_…',
    )
    .optional(),
  BERTH_STRIPE_HOST: z
    .string()
    .optional()
    .transform((text, ctx) =>
      text === undefined
        ? undefined
        : (parseApiHost(text) ?? expected(ctx, 'a host such as api.stripe.com or api.example.com:8443')),
    ),
  BERTH_STRIPE_WEBHOOK: z
    .string()
    .default('')
    .transform((text) => text.split(',').flatMap((piece) => piece.trim() || []))
    .refine((secrets) => secrets.every((secret) => /^whsec_\S+$/.test(secret)), 'expected signing secrets: whsec_…'),
  BERTH_LOG: choice('fatal', 'error', 'warn', 'info', 'debug', 'trace', 'silent').default('info'),
  BERTH_DRAIN: z
    .string()
    .default('30s')
    .transform((text, ctx) => parseDurationMs(text) ?? expected(ctx, 'a duration such as 30s, 5m or 2h')),
})

function expected(ctx: z.RefinementCtx, what: string): typeof z.NEVER {
  ctx.addIssue({ code: 'custom', message: `expected ${what}` })
  return z.NEVER
}

function sentence(error: z.ZodError, given: Record<string, string | undefined>): string {
  const issue = error.issues[0]
  const name = String(issue?.path[0] ?? '')
  const value = given[name]
  const shown = value === undefined ? 'is not set' : SECRET.has(name) ? '(not shown)' : `is ${JSON.stringify(value)}`
  return `${name} ${shown}: ${issue?.message ?? 'not understood'}`
}

function isHostName(text: string): boolean {
  return text.length <= 253 && /^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$/i.test(text)
}

function isIpv4Network(text: string): boolean {
  const [address = '', bits = '', more] = text.split('/')
  if (more !== undefined || isIP(address) !== 4 || !/^\d{1,2}$/.test(bits)) return false
  const prefix = Number(bits)
  if (prefix < 8 || prefix > 28) return false
  const value = address.split('.').reduce((sum, octet) => sum * 256 + Number(octet), 0)
  return value % 2 ** (32 - prefix) === 0
}
