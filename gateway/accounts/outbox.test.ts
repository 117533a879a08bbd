import type { AddressInfo } from 'node:net'
import { pino } from 'pino'
import { SMTPServer } from 'smtp-server'
import { describe, expect, it } from 'vitest'
import { testDatabase } from '../../test/database.ts'
import { startNews } from '../news.ts'
import { Outbox } from './outbox.ts'

const log = pino({ level: 'silent' })

async function startMailServer(answer: () => number = () => 250) {
  const recipients: string[] = []
  const server = new SMTPServer({
    authOptional: true,
    disabledCommands: ['STARTTLS', 'AUTH'],
    onData(stream, session, done) {
      stream.resume()
      stream.on('end', () => {
        const responseCode = answer()
        if (responseCode !== 250) return done(Object.assign(new Error('not now'), { responseCode }))
        recipients.push(...session.envelope.rcptTo.map((to) => to.address))
        done()
      })
    },
  })
  server.on('error', () => {})
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', () => resolve()))
  return {
    recipients,
    url: `smtp://127.0.0.1:${(server.server.address() as AddressInfo).port}`,
    [Symbol.asyncDispose]: () => new Promise<void>((resolve) => server.close(() => resolve())),
  }
}

async function startOutbox(sql: Parameters<typeof startNews>[0], smtp: string) {
  const news = await startNews(sql, log)
  const outbox = new Outbox({ sql, news, log, smtp, from: 'Berth <berth@localhost>', retrySeconds: [0.05, 0.05] })
  return {
    async [Symbol.asyncDispose]() {
      await outbox.close()
      await news.close()
    },
  }
}

describe('the outbox', () => {
  it('sends each mail once from however many gateways, and forgets its body', async () => {
    await using mail = await startMailServer()
    await using database = await testDatabase()
    const sql = database.as('owner')
    await using _first = await startOutbox(database.as('berth_gateway'), mail.url)
    await using _second = await startOutbox(database.as('berth_gateway'), mail.url)
    await sql`
      insert into mails (recipient, subject, body)
      select 'p' || n || '@example.com', 's', 'secret' from generate_series(1, 30) as n`
    await expect.poll(() => mail.recipients.length, { timeout: 60_000 }).toBe(30)
    await expect.poll(() => sql`select from mails where sent_at is null`, { timeout: 60_000 }).toHaveLength(0)
    expect(new Set(mail.recipients).size).toBe(30)
    expect(mail.recipients).toHaveLength(30)
    expect(await sql`select distinct body, attempts from mails`).toEqual([{ body: '', attempts: 1 }])
  })

  it('tries again, gives up after the last attempt, and keeps that mail with the reason', async () => {
    let refusals = 0
    await using mail = await startMailServer(() => {
      refusals++
      return 451
    })
    await using database = await testDatabase()
    const sql = database.as('owner')
    await sql`insert into mails (recipient, subject, body) values ('p@example.com', 's', 'text')`
    await using _outbox = await startOutbox(database.as('berth_gateway'), mail.url)
    await expect
      .poll(() => sql`select attempts, body, sent_at, last_error ~ '451' as told from mails`, { timeout: 60_000 })
      .toEqual([{ attempts: 3, body: 'text', sent_at: null, told: true }])
    // A later mail shows that the outbox goes on, and that it asked no fourth time for the first one.
    await sql`insert into mails (recipient, subject, body) values ('q@example.com', 's', 'text')`
    await expect.poll(() => sql`select attempts from mails order by id`).toEqual([{ attempts: 3 }, { attempts: 3 }])
    await expect.poll(() => refusals).toBe(6)
  })

  it('takes up what a gateway that died had taken', async () => {
    await using mail = await startMailServer()
    await using database = await testDatabase()
    const sql = database.as('owner')
    await sql`
      insert into mails (recipient, subject, body, attempts, next_attempt_at)
      values ('p@example.com', 's', 'text', 1, now() + interval '300 ms')`
    await using _outbox = await startOutbox(database.as('berth_gateway'), mail.url)
    await expect.poll(() => mail.recipients, { timeout: 60_000 }).toEqual(['p@example.com'])
  })
})
