import type { Algorithms } from 'ssh2'

/**
 * What the gateway offers on both sides, spelled out so that nothing is inherited from ssh2's defaults: no SHA-1,
 * no CBC, no group exchange (ssh2 offers it and then fails), no compression (it costs more than it saves, and every
 * byte of it is attack surface before sign-in).
 *
 * Order is preference for the client role only; as a server the client's order decides (RFC 4253, 7.1).
 * kex-strict and ext-info are added by ssh2 itself.
 */
const kex = [
  // draft-ietf-sshm-mlkem-hybrid-kex; without it OpenSSH >= 10.1 warns at every connection
  'mlkem768x25519-sha256',
  'curve25519-sha256',
  'curve25519-sha256@libssh.org',
  'ecdh-sha2-nistp256',
  'ecdh-sha2-nistp384',
  'ecdh-sha2-nistp521',
  'diffie-hellman-group16-sha512',
  'diffie-hellman-group18-sha512',
  // group14 with SHA-256 is what the oldest clients still in use (PuTTY 0.70, dropbear 2018) share with a modern server
  'diffie-hellman-group14-sha256',
] as const

const cipher = [
  'aes128-gcm@openssh.com',
  'aes256-gcm@openssh.com',
  'chacha20-poly1305@openssh.com',
  'aes128-ctr',
  'aes192-ctr',
  'aes256-ctr',
] as const

const hmac = [
  'hmac-sha2-256-etm@openssh.com',
  'hmac-sha2-512-etm@openssh.com',
  'hmac-sha2-256',
  'hmac-sha2-512',
] as const

/** For `new Server({ algorithms: serverAlgorithms, … })`. */
export const serverAlgorithms: Algorithms = algorithms([
  'ssh-ed25519',
  'ecdsa-sha2-nistp256',
  'rsa-sha2-512',
  'rsa-sha2-256',
])

/**
 * For the gateway's own connections to machines, whose host keys are always ed25519. They leave the server's memory for
 * no wire that somebody could record for a quantum computer to come, and whoever wants a machine waits for them.
 */
export const machineAlgorithms: Algorithms = algorithms(['ssh-ed25519'], ['curve25519-sha256', ...kex])

// @types/ssh2 names the algorithms of ssh2 as published; the ones our patch adds are missing from its unions.
function algorithms(serverHostKey: readonly string[], preferred: readonly string[] = kex): Algorithms {
  const lists: Record<'kex' | 'cipher' | 'hmac' | 'serverHostKey' | 'compress', readonly string[]> = {
    kex: [...new Set(preferred)],
    cipher,
    hmac,
    serverHostKey,
    compress: ['none'],
  }
  return lists as unknown as Algorithms
}
