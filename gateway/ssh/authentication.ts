/**
 * Sign-in by public key (RFC 4252, 7). One connection moves through:
 *
 *   asked     the client tries `none` and hears that only public keys are taken
 *   offered   it offers one key after the other without signing; each is looked up, once a connection
 *   signed    it signs for a key that was accepted; a wrong signature counts as a failed attempt, an offer never does
 *   in        a known key signed: the account's session. An unknown key signed: a session that can only sign up
 *
 * Offers and unknown keys. A client does not say how many keys it has, and the first may be unknown while the third
 * is an account's. OpenSSH turns its keys in a ring and, after a partial success (RFC 4252, 5.1), begins a new round
 * behind the key that it just signed for. So the first unknown key that signs gets a partial success: the client
 * offers its other keys, and if none of them is known it comes back to that one, which is then let in to sign up.
 * Other clients take a partial success for an end or begin at their first key again, so theirs is let in at once.
 */
import type { AuthContext, Connection, PublicKeyAuthContext } from 'ssh2'
import type { Sql } from '../../migrations/connect.ts'
import { type PublicKey, PublicKeyError, parsePublicKey } from '../accounts/public-key.ts'
import { answerWithin, faultSentence } from '../fault.ts'
import type { Log } from '../log.ts'
import { DISCONNECT, disconnect, isOpen, sendBanner } from './internals.ts'
import type { Limits } from './limits.ts'
import { lookUp, type SignIn } from './sign-in.ts'
import { isAlgorithmOf, isSignedBy } from './verify.ts'

/** Who a connection turned out to be. */
export type SignedIn = {
  /** the SSH user name, as typed */
  typed: string
  key: PublicKey
  /** undefined: a key that no account has */
  signIn: SignIn | undefined
  /** of the news about keys, when the key was looked up */
  generation: number
}

export type AuthenticationOptions = {
  sql: Sql
  log: Log
  limits: Limits
  /** `OpenSSH_9.2p1` of the client's identification */
  software: string
  /** grows with each piece of news about keys */
  generation: () => number
  onFailedSignature: () => void
  /** the database was asked for a key that no account has */
  onUnknownKey: () => void
}

const METHODS: ['publickey'] = ['publickey']
/** Longest local names are 256 characters (Windows); what is longer is no name. */
const MAX_USER_NAME_LENGTH = 256

/**
 * Answers a connection's sign-in requests.
 * @param onSignedIn called in the tick in which ssh2 emits 'ready'
 */
export function authenticate(
  client: Connection,
  options: AuthenticationOptions,
  onSignedIn: (who: SignedIn) => void,
): void {
  const { limits, log } = options
  const goesRound = /^OpenSSH_/.test(options.software)
  let requests = 0
  let failures = 0
  let provedUnknown: PublicKey | undefined
  let signedIn: SignedIn | undefined
  // By fingerprint. ssh2 ends a connection that changes its user name, so what was found holds for all that follows.
  const looked = new Map<string, SignedIn>()
  let lastRefusal = ''

  client.on('ready', () => {
    if (signedIn) onSignedIn(signedIn)
  })
  client.on('authentication', (context) => {
    requests++
    if (requests > limits.signInRequests) {
      return disconnect(client, DISCONNECT.noMoreAuthMethods, 'Berth: too many sign-in requests on one connection')
    }
    if (context.username.length > MAX_USER_NAME_LENGTH || context.username.includes('\0')) {
      return disconnect(client, DISCONNECT.protocolError, 'Berth: that is no user name')
    }
    if (!isPublicKey(context)) return context.reject(METHODS)
    answer(context).catch((error) => {
      disconnect(client, DISCONNECT.serviceNotAvailable, `Berth: ${faultSentence(error, log, 'a sign-in failed')}`)
    })
  })

  async function answer(context: PublicKeyAuthContext): Promise<void> {
    const key = parseOffered(context)
    if (!key) return context.reject(METHODS)
    const found = await lookUpOnce(key, context.username)
    if (!isOpen(client)) return
    const { signIn } = found
    const returns = provedUnknown?.blob.equals(key.blob) ?? false
    if (!signIn && provedUnknown && !returns) return context.reject(METHODS)
    if (!context.signature) return context.accept()

    const { blob, signature } = context
    const { algo: algorithm } = context.key
    if (!blob || !isSignedBy(key, { algorithm, hash: context.hashAlgo, signed: blob, signature })) {
      failures++
      options.onFailedSignature()
      if (failures >= limits.failedSignatures) {
        return disconnect(client, DISCONNECT.noMoreAuthMethods, 'Berth: too many failed signatures on one connection')
      }
      return context.reject(METHODS)
    }
    if (!signIn && goesRound && !returns) {
      provedUnknown = key
      return context.reject(METHODS, true)
    }
    signedIn = found
    context.accept()
  }

  /** Every connection asks anew, so a key that was just added works at once; news make it ask again in between. */
  async function lookUpOnce(key: PublicKey, typed: string): Promise<SignedIn> {
    const generation = options.generation()
    const before = looked.get(key.fingerprint)
    if (before?.generation === generation) return before
    const signIn = await answerWithin(limits.lookUpMs, lookUp(options.sql, key.blob, typed))
    const found = { key, typed, generation, signIn }
    looked.set(key.fingerprint, found)
    if (!found.signIn) options.onUnknownKey()
    return found
  }

  /** What cannot sign in at all is refused with a line that says why, once. */
  function parseOffered(context: PublicKeyAuthContext): PublicKey | undefined {
    try {
      const key = parsePublicKey(context.key.data)
      if (isAlgorithmOf(key, context.key.algo, context.hashAlgo)) return key
      if (key.algorithm === 'ssh-rsa')
        refuse('your client signs with SHA-1, which is too weak; use a newer client or another key')
    } catch (error) {
      if (!(error instanceof PublicKeyError)) throw error
      // Whoever has a certificate offers it at every connection, and the plain key right after it.
      if (!context.key.algo.includes('-cert-v0')) refuse(`one of your keys cannot be used: ${error.message}`)
    }
    return undefined
  }

  function refuse(text: string): void {
    if (text === lastRefusal) return
    lastRefusal = text
    sendBanner(client, `Berth: ${text}`)
  }
}

function isPublicKey(context: AuthContext): context is PublicKeyAuthContext {
  return context.method === 'publickey'
}
