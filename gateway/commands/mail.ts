import { defineCommand } from './command.ts'
import { CommandError } from './error.ts'
import { harmless, table } from './text.ts'
import { sayWhen, shown } from './values.ts'

export const mail = defineCommand({
  name: 'mail',
  group: 'operator',
  signsIn: true,
  operator: true,
  summary: 'mail that was not sent, for you to pass on',
  description: 'Without BERTH_SMTP every mail is kept here; with it those that could not be sent.',
  arguments: { id: { label: 'ID', optional: true } },
  async run({ app }, { args }) {
    type Mail = {
      id: number
      recipient: string
      subject: string
      body: string
      created_at: Date
      last_error: string | null
    }
    const mails = await app.sql<Mail[]>`
      select id, recipient, subject, body, created_at, last_error from mails where sent_at is null order by id desc limit 200`
    if (args.id === undefined) {
      return {
        json: {
          mails: mails.map((one) => ({
            id: one.id,
            to: one.recipient,
            subject: one.subject,
            created_at: one.created_at.toISOString(),
          })),
        },
        text: (view) =>
          mails.length === 0
            ? 'no mail is kept\n'
            : table(
                mails,
                [
                  { title: 'id', value: (one) => String(one.id), right: true },
                  { title: 'to', value: (one) => harmless(one.recipient), flexible: true },
                  { title: 'subject', value: (one) => harmless(one.subject), flexible: true },
                  { title: 'written', value: (one) => sayWhen(one.created_at), optional: 1 },
                ],
                view,
              ),
      }
    }
    const found = mails.find((one) => String(one.id) === args.id)
    if (!found)
      throw new CommandError('mail.not_found', 3, `no mail ${shown(args.id)}`, { wayOn: 'mail lists those kept' })
    return {
      json: { ...found, created_at: found.created_at.toISOString() },
      text: `to ${harmless(found.recipient)}\n${harmless(found.subject)}\n\n${harmless(found.body).trimEnd()}\n`,
    }
  },
})
