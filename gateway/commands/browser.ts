import { createSignInLink, endAllSessions } from '../accounts/web-sessions.ts'
import { defineCommand } from './command.ts'
import { recordEvent } from './machine-steps.ts'
import { qrText } from './qr.ts'
import { controlUrl } from './web-links.ts'

export const browser = defineCommand({
  name: 'browser',
  group: 'you',
  signsIn: true,
  summary: 'a link that signs a browser in',
  description: 'It is good once, for ten minutes. Whoever has it is you, so it is for your own browsers only.',
  flags: {
    qr: { type: 'boolean', summary: 'as a picture too, for a phone' },
    'sign-out-everywhere': { type: 'boolean', summary: 'sign every browser of yours out instead' },
  },
  examples: ['browser', 'browser --qr'],
  async run({ app, caller }, { flags }) {
    const origin = controlUrl(app.settings)
    if (flags['sign-out-everywhere']) {
      const count = await endAllSessions(app.sql, caller.accountId)
      await recordEvent(app.sql, caller, 'browser.signed_out', null, { browsers: count })
      const text =
        count === 0
          ? 'no browser was signed in\n'
          : `${count === 1 ? '1 browser is' : `${count} browsers are`} signed out\n`
      return { json: { signed_out: count }, text }
    }
    const url = `${origin}/login/${await createSignInLink(app.sql, caller.accountId)}`
    return {
      json: { url, expires_in_seconds: 600 },
      text: (view) => `${flags.qr ? `${qrText(url, view.style.accent('x') !== 'x')}\n` : ''}${url}\n`,
    }
  },
})
