/** A gateway's part that closes months, in a process of its own: `node closing-process.ts DATABASE_URL NOW`. */
import { pino } from 'pino'
import { connect } from '../../../migrations/connect.ts'
import { closeDueMonths } from '../closing.ts'

const [, , url = '', now = ''] = process.argv
const sql = connect({ url, role: 'berth_gateway', max: 2 })
await closeDueMonths(sql, new Date(now), new AbortController().signal, pino({ level: 'silent' }))
await sql.end()
