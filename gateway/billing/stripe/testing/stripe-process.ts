/** A gateway's part that takes invoices to Stripe, in a process of its own: `node stripe-process.ts DATABASE_URL HOST KEY`. */
import { pino } from 'pino'
import { connect } from '../../../../migrations/connect.ts'
import { parseSettings } from '../../../settings.ts'
import { paymentsOf } from '../client.ts'
import { stripeRound } from '../service.ts'

const [, , url = '', host = '', key = ''] = process.argv
const sql = connect({ url, role: 'berth_gateway', max: 6 })
const settings = parseSettings({ DATABASE_URL: url, BERTH_STRIPE_KEY: key, BERTH_STRIPE_HOST: host })
const log = pino({ level: 'silent' })
await stripeRound({
  payments: await paymentsOf(settings),
  sql,
  log,
  signal: new AbortController().signal,
  hearsEvents: true,
})
await sql.end()
