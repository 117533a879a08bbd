import { z } from 'zod'
import { type Cidr, parseAddress, parseCidr } from './network/address.ts'
import { publicPorts } from './network/listen.ts'
import type { PublicPort } from './network/types.ts'

export type Settings = {
  readonly dataDirectory: string
  readonly databaseUrl: string
  /** machine addresses, IPv4 CIDR */
  readonly network: string
  /** name servers of the machines: one or two IPv4 addresses */
  readonly resolvers: readonly string[]
  /** time server of the machines */
  readonly ntp: string
  /** private networks that machines may reach */
  readonly allow: readonly string[]
  readonly hypervisor: 'auto' | 'cloud-hypervisor' | 'qemu'
  /** the program, where it is not in PATH */
  readonly cloudHypervisor: string | undefined
  readonly accelerator: 'auto' | 'kvm' | 'tcg'
  /** from one reading of what machines have sent to the next */
  readonly meterEveryMs: number
  readonly logLevel: string
  /** what the gateway on this server listens on, if it can: of these, machines may reach those that it has; none without a gateway */
  readonly publicPorts: readonly PublicPort[]
}

/** `message` is one line: the variable, its value, what was expected. */
export class SettingsError extends Error {
  override readonly name = 'SettingsError'
}

/** Socket paths in the kernel hold 107 bytes; what is appended to the data directory takes up to 43. @see unix(7) */
const dataDirectoryMostBytes = 64

/** Values of these hold credentials; an error shows the name alone. */
const secret = new Set(['DATABASE_URL'])

const variables = z.object({
  BERTH_DATA: z
    .string()
    .default('/var/lib/berth')
    .refine((path) => path.startsWith('/') && !path.includes('\0'), 'an absolute path')
    .refine((path) => Buffer.byteLength(path) <= dataDirectoryMostBytes, `at most ${dataDirectoryMostBytes} bytes`)
    .transform((path) => (path === '/' ? path : path.replace(/\/+$/, ''))),
  DATABASE_URL: z
    .string('a postgres:// URL; without one start Berth by npm start, which brings a database along')
    .regex(/^postgres(ql)?:\/\//, 'a postgres:// URL'),
  BERTH_NETWORK: z
    .string()
    .default('10.42.0.0/16')
    .refine((text) => {
      const network = cidr(text)
      return network !== undefined && network.prefix >= 8 && network.prefix <= 29
    }, 'an IPv4 network from /8 to /29 without bits set right of its prefix, such as 10.42.0.0/16'),
  BERTH_RESOLVERS: list('1.1.1.1,8.8.8.8')
    .refine((values) => values.length >= 1 && values.length <= 2, 'one or two addresses separated by a comma')
    .refine((values) => values.every(isAddress), 'IPv4 addresses, such as 1.1.1.1,8.8.8.8'),
  // Goes onto the kernel's command line between colons.
  BERTH_NTP: z
    .string()
    .default('pool.ntp.org')
    .refine((text) => /^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$/.test(text), 'a host name or IPv4 address'),
  BERTH_ALLOW: list('').refine(
    (values) => values.every((text) => cidr(text) !== undefined),
    'IPv4 networks separated by commas, such as 192.168.7.0/24',
  ),
  BERTH_HYPERVISOR: z.enum(['auto', 'cloud-hypervisor', 'qemu'], 'auto, cloud-hypervisor or qemu').default('auto'),
  CLOUD_HYPERVISOR: z
    .string()
    .refine((path) => path.startsWith('/') && !path.includes('\0'), 'the absolute path of a program')
    .optional(),
  BERTH_ACCEL: z.enum(['auto', 'kvm', 'tcg'], 'auto, kvm or tcg').default('auto'),
  BERTH_METER: z
    .string()
    .regex(/^[1-9]\d{0,3}[sm]$/, 'a duration such as 10s or 1m')
    .default('1m')
    .transform((text) => Number.parseInt(text, 10) * (text.endsWith('s') ? 1_000 : 60_000))
    .refine((ms) => ms <= 600_000, 'at most 10m'),
  BERTH_LOG: z
    .enum(['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'], 'trace, debug, info, warn, error or fatal')
    .default('info'),
  // The launcher's: what it runs on this server.
  BERTH_SIDES: list('vmhost'),
  BERTH_SSH: listen(':2222', 'tcp'),
  BERTH_HTTPS: listen(':8443', 'tcp'),
  BERTH_PORTS: z.enum(['on', 'off'], 'on or off').optional(),
  BERTH_HTTP: listen(':8080', 'tcp'),
  BERTH_DNS: listen('off', 'udp'),
})

/**
 * Reads the vmhost's variables (README, "Settings"). An empty value is the same as none.
 * @throws SettingsError naming the variable, its value and what was expected
 */
export function parseSettings(env: Readonly<Record<string, string | undefined>>): Settings {
  const given = Object.fromEntries(Object.entries(env).filter(([, value]) => value !== undefined && value !== ''))
  const parsed = variables.safeParse(given)
  if (!parsed.success) throw new SettingsError(sentence(parsed.error, given))
  const v = parsed.data
  const machinePorts =
    v.BERTH_PORTS === undefined ? v.BERTH_HTTPS.some(({ port }) => port === 443) : v.BERTH_PORTS === 'on'
  return {
    dataDirectory: v.BERTH_DATA,
    databaseUrl: v.DATABASE_URL,
    network: v.BERTH_NETWORK,
    resolvers: v.BERTH_RESOLVERS,
    ntp: v.BERTH_NTP,
    allow: v.BERTH_ALLOW,
    hypervisor: v.BERTH_HYPERVISOR,
    cloudHypervisor: v.CLOUD_HYPERVISOR,
    accelerator: v.BERTH_ACCEL,
    meterEveryMs: v.BERTH_METER,
    logLevel: v.BERTH_LOG,
    // Without a gateway, what listens on these ports is a service of the server like any other.
    publicPorts: v.BERTH_SIDES.includes('gateway')
      ? [
          ...v.BERTH_SSH,
          ...v.BERTH_HTTPS.map((port) => (machinePorts ? { ...port, forMachinePorts: true as const } : port)),
          ...v.BERTH_HTTP,
          ...v.BERTH_DNS,
          // DNS answers over TCP as well.
          ...v.BERTH_DNS.map((port) => ({ ...port, protocol: 'tcp' as const })),
        ]
      : [],
  }
}

function sentence(error: z.ZodError, given: Record<string, string | undefined>): string {
  const issue = error.issues[0]
  const name = String(issue?.path[0] ?? 'a setting')
  const value = given[name]
  const shown = value === undefined ? ' is missing' : secret.has(name) ? '' : ` is ${JSON.stringify(value)}`
  return `${name}${shown}: expected ${issue?.message ?? 'another value'}`
}

function list(fallback: string) {
  return z
    .string()
    .default(fallback)
    .transform((text) =>
      text
        .split(',')
        .map((part) => part.trim())
        .filter((part) => part !== ''),
    )
}

function listen(fallback: string, protocol: 'tcp' | 'udp') {
  return z
    .string()
    .default(fallback)
    .transform((text, context) => {
      try {
        return publicPorts(text, protocol)
      } catch {
        context.addIssue({ code: 'custom', message: 'listen addresses such as :2222 or 203.0.113.5:22, or off' })
        return z.NEVER
      }
    })
}

function cidr(text: string): Cidr | undefined {
  try {
    return parseCidr(text)
  } catch {
    return undefined
  }
}

function isAddress(text: string): boolean {
  try {
    parseAddress(text)
    return true
  } catch {
    return false
  }
}
