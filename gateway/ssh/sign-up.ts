import { checkCode, EmailCodeError, mailCode } from '../accounts/email-codes.ts'
import { isOpenCode } from '../accounts/invitations.ts'
import { hasOwner, isEmail, SignUpError, signUp } from '../accounts/people.ts'
import type { PublicKey } from '../accounts/public-key.ts'
import { type App, type CommandIo, EXIT, type Terminal } from '../app.ts'
import { sayDuration } from '../commands/values.ts'
import { openSeat } from '../lobby/seat.ts'
import { addressGroup } from './limits.ts'

export type SignUpOptions = {
  app: App
  key: PublicKey
  /** the SSH user name that was typed */
  typed: string
  address: string
  /** keys the hashes of mailed codes */
  codeSecret: Buffer
  /** an abandoned sign-up ends by itself after this long */
  timeoutMs: number
  /** a wrong code was given */
  onFailure: () => void
}

export type Member = { accountId: number; isOwner: boolean }

const MAX_TRIES = 5

/** What a key that no account has gets without a terminal: one sentence that says what to type. */
export function signUpSentence(app: App): string {
  const { port } = app.settings.ssh[0] ?? { port: 22 }
  const command = `ssh ${port === 22 ? '' : `-p ${port} `}${app.settings.domain}`
  return app.settings.signup === 'closed'
    ? `this key has no account here, and sign-up is closed; add the key to your account from a signed-in one with: ssh-key add`
    : `this key has no account here; to sign up, run in a terminal: ${command}`
}

/**
 * Asks a person with an unknown key for a join code, an address and the code mailed to it, and makes the account.
 * @returns the account, or undefined when the person left or may not; a sentence has said why
 */
export async function signUpOnTerminal(
  options: SignUpOptions,
  io: CommandIo & { terminal: Terminal },
): Promise<Member | undefined> {
  const timedOut = AbortSignal.timeout(options.timeoutMs)
  const limited = { ...io, signal: AbortSignal.any([io.signal, timedOut]) }
  using seat = openSeat(limited)
  const say = (...lines: string[]) => {
    if (!io.stdout.destroyed && !io.stdout.writableEnded) io.stdout.write(lines.map((line) => `${line}\r\n`).join(''))
  }
  const dialog = new Dialog(options, say, async (question) => (await seat.ask(question))?.trim())
  try {
    return await dialog.run()
  } catch (error) {
    if (limited.signal.aborted || error instanceof Left) {
      if (timedOut.aborted) say('', `This sign-up was open for ${sayDuration(options.timeoutMs)} and ends now.`)
      say('', 'Nothing was made. Connect again whenever you like.')
      return undefined
    }
    throw error
  }
}

/** The status of a session that could only sign up and did not. */
export const SIGN_UP_REFUSED = EXIT.notAllowed

/** The person left: Ctrl-C, Ctrl-D, or the connection is gone. */
class Left extends Error {}

class Dialog {
  readonly #options: SignUpOptions
  readonly #say: (...lines: string[]) => void
  readonly #read: (question: string) => Promise<string | undefined>

  constructor(
    options: SignUpOptions,
    say: (...lines: string[]) => void,
    read: (question: string) => Promise<string | undefined>,
  ) {
    this.#options = options
    this.#say = say
    this.#read = read
  }

  async run(): Promise<Member | undefined> {
    const { app, key, typed, address } = this.#options
    const owned = await hasOwner(app.sql)
    this.#say(`This is Berth at ${app.settings.domain}.`, `Your key ${key.fingerprint} has no account here.`, '')
    if (app.settings.signup === 'closed' && owned) {
      this.#say(
        'Sign-up is closed.',
        'If you have an account, add this key from a connection that is signed in: ssh-key add',
      )
      return undefined
    }
    const needsCode = !owned || app.settings.signup === 'invite'
    const code = needsCode ? await this.#joinCode(owned) : undefined
    if (needsCode && code === undefined) return undefined
    for (let tries = 0; tries < MAX_TRIES; tries++) {
      const email = await this.#email()
      if (email === false) return undefined
      try {
        const member = await signUp(app.sql, {
          key,
          sshName: typed,
          address,
          ...(code === undefined ? {} : { code }),
          ...(email === undefined ? {} : { email, emailProved: app.settings.smtp !== undefined }),
        })
        this.#say('', member.isOwner ? 'Welcome. This installation is yours.' : 'Welcome. You have an account.', '')
        return member
      } catch (error) {
        if (!(error instanceof SignUpError)) throw error
        this.#say(sentenceOf(error))
        if (error.code !== 'signup.email') return undefined
      }
    }
    return undefined
  }

  async #joinCode(owned: boolean): Promise<string | undefined> {
    this.#say(
      owned
        ? 'To make one, paste the join code that somebody sent you.'
        : 'Nobody owns this installation yet. Paste the join code that its start printed.',
    )
    for (let tries = 0; tries < MAX_TRIES; tries++) {
      const code = await this.#ask('Join code: ')
      if (code === '') continue
      if (await isOpenCode(this.#options.app.sql, code)) return code
      this.#options.onFailure()
      this.#say('That join code is not known, used up or too old.')
    }
    this.#say('Ask for another one, and connect again.')
    return undefined
  }

  /** @returns undefined: none given; false: the person could not prove one */
  async #email(): Promise<string | undefined | false> {
    const works = this.#options.app.settings.smtp !== undefined
    const question = works ? 'E-mail address: ' : 'E-mail address (Enter for none): '
    for (let tries = 0; tries < MAX_TRIES; tries++) {
      const email = (await this.#ask(question)).toLowerCase()
      if (email === '' && !works) return undefined
      if (!isEmail(email)) {
        this.#say('That is not an address; expected one such as you@example.com.')
        continue
      }
      if (!works) return email
      if (await this.#prove(email)) return email
    }
    this.#say('Nothing was made. Connect again to start over.')
    return false
  }

  async #prove(email: string): Promise<boolean> {
    const { app, key, codeSecret, address } = this.#options
    try {
      const client = addressGroup(address)
      await mailCode(app.sql, codeSecret, { email, publicKey: key.blob, domain: app.settings.domain, client })
    } catch (error) {
      if (!(error instanceof EmailCodeError)) throw error
      this.#say(`${error.message[0]?.toUpperCase()}${error.message.slice(1)}.`)
      return false
    }
    this.#say(
      `A code is on its way to ${email}. It is good for 10 minutes; Enter without one asks for another address.`,
    )
    for (let tries = 0; tries < MAX_TRIES; tries++) {
      const code = await this.#ask('Code: ')
      if (code === '') return false
      if (await checkCode(app.sql, codeSecret, { email, publicKey: key.blob, code })) return true
      this.#options.onFailure()
      this.#say('That is not the code.')
    }
    return false
  }

  async #ask(question: string): Promise<string> {
    const answer = await this.#read(question)
    if (answer === undefined) throw new Left()
    return answer
  }
}

function sentenceOf(error: SignUpError): string {
  return `${error.message[0]?.toUpperCase()}${error.message.slice(1)}.`
}
