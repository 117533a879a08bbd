import { createRequire } from 'node:module'

const require = createRequire(import.meta.url)

/**
 * Proves that ssh2 is what the gateway was built on: our patch applied and the native ciphers built for this Node.
 * Without the native part everything works at a fifth of the speed, which nobody would notice until it hurts.
 * @throws Error naming the remedy
 */
export function checkSsh2(): void {
  const { bindingAvailable, bindingPatched } = require('ssh2/lib/protocol/crypto.js') as {
    bindingAvailable: boolean
    bindingPatched?: boolean
  }
  if (!bindingAvailable) {
    throw new Error(
      `The native part of ssh2 is missing or was built for another Node (this is ${process.version}). ` +
        'Remedy: npm run setup, which rebuilds it.',
    )
  }
  const prototype: unknown = require('ssh2/lib/protocol/Protocol.js').prototype
  const applied = typeof (prototype as { relayTo?: unknown }).relayTo === 'function'
  if (!applied || bindingPatched !== true) {
    throw new Error(
      "Berth's patch of ssh2 is not applied, or its native part was built before it was. Remedy: npm run setup.",
    )
  }
}
