/**
 * The connection to Stripe: the official library, loaded when it is used first, since an installation that takes no
 * payments should not pay for it in memory.
 */
import type { Stripe } from 'stripe'
import type { Sql } from '../../../migrations/connect.ts'
import { CommandError } from '../../commands/error.ts'
import { harmless } from '../../commands/text.ts'
import type { Settings, StripeSettings } from '../../settings.ts'

/** What Berth was written against; the types of another release say so. */
export const API_VERSION = '2026-10-28.endive' satisfies Stripe.StripeConfig['apiVersion']

const TIMEOUT_MS = 15_000
/** Within one call, with growing pauses; what still fails waits longer, in its row. */
const RETRIES = 2

export type Payments = {
  stripe: Stripe
  livemode: boolean
}

const clients = new WeakMap<StripeSettings, Promise<Stripe>>()

/** @throws CommandError 'payment.off' when Stripe is not configured */
export async function paymentsOf(settings: Pick<Settings, 'stripe'>): Promise<Payments> {
  const configured = settings.stripe
  if (!configured) throw notConfigured()
  let client = clients.get(configured)
  if (!client) {
    client = open(configured)
    clients.set(configured, client)
  }
  return { stripe: await client, livemode: isLive(configured) }
}

export function notConfigured(): CommandError {
  return new CommandError('payment.off', 1, 'this Berth takes no payments', {
    wayOn: 'the operator switches Stripe on with BERTH_STRIPE_KEY',
  })
}

/** Keys of test mode move no money, and see nothing of live mode. */
export function isLive({ key }: StripeSettings): boolean {
  return key.includes('_live_')
}

async function open({ key, host }: StripeSettings): Promise<Stripe> {
  const { Stripe } = await import('stripe')
  return new Stripe(key, {
    apiVersion: API_VERSION,
    ...(host ?? {}),
    timeout: TIMEOUT_MS,
    maxNetworkRetries: RETRIES,
    telemetry: false,
  })
}

export type Mode = { livemode: boolean; installation: string; since: Date }

/** When this installation began to use Stripe in that mode, and what Stripe knows it by. */
export async function modeOf(sql: Sql, livemode: boolean): Promise<Mode> {
  await sql`insert into stripe_modes (livemode) values (${livemode}) on conflict do nothing`
  const [mode] = await sql<Mode[]>`select livemode, installation, since from stripe_modes where livemode = ${livemode}`
  if (!mode) throw new Error('there is no row of this mode of Stripe')
  return mode
}

/** The same step of the same record has the same key, whoever takes it and however often (docs.stripe.com/api/idempotent_requests). */
export function keyOf({ installation }: Mode, ...step: (string | number)[]): { idempotencyKey: string } {
  return { idempotencyKey: ['berth', installation, ...step].join('-') }
}

/** What went wrong at Stripe, without anything secret. */
export type StripeFailure = {
  type: string
  code: string | undefined
  /** of the answer; undefined when there was none */
  status: number | undefined
  /** one line for people */
  message: string
  requestId: string | undefined
  /** Stripe keeps this very answer under its idempotency key */
  isKept: boolean
}

/** @returns undefined for an error that is none of Stripe's */
export function failureOf(error: unknown): StripeFailure | undefined {
  if (!(error instanceof Error) || !('type' in error) || !String(error.type).startsWith('Stripe')) return undefined
  const { type, code, statusCode, headers, requestId } = error as Stripe.errors.StripeError
  return {
    ...{ type, code, status: statusCode, requestId },
    message: withoutSecrets(error.message) || 'Stripe gave no reason',
    isKept: headers?.['idempotent-replayed'] === 'true',
  }
}

/** What concerns every call alike: nothing else is worth trying now. */
export function isForAll({ status }: StripeFailure): boolean {
  return status === undefined || status === 401 || status === 403 || status === 429
}

const MESSAGE_MOST = 300

/** Keys, signing secrets and client secrets are cut out of a text of Stripe's. */
export function withoutSecrets(text: string): string {
  return harmless(text)
    .replaceAll(/\s+/g, ' ')
    .replaceAll(/\b(sk|rk|pk|whsec)_[A-Za-z0-9_*]+/g, '$1_…')
    .replaceAll(/\b(\w+)_secret_\w+/g, '$1_secret_…')
    .trim()
    .slice(0, MESSAGE_MOST)
}
