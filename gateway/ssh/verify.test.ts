/**
 * FIDO keys without hardware: a software authenticator signs. One test proves the authenticator with OpenSSH's own
 * verifier, one our check with OpenSSH's own client.
 */
import { execFileSync } from 'node:child_process'
import { createHash, generateKeyPairSync, sign } from 'node:crypto'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { startTestGateway } from '../../test/gateway.ts'
import { addKey } from '../accounts/keys.ts'
import { parseKeyLine, parsePublicKey } from '../accounts/public-key.ts'
import {
  ECDSA,
  ED25519,
  mpint,
  type SignOptions,
  SoftwareAuthenticator,
  serveAgent,
  string,
} from './software-authenticator.ts'
import { isSignedBy } from './verify.ts'

describe.each([ED25519, ECDSA] as const)('a %s signature', (type) => {
  const device = new SoftwareAuthenticator(type)
  const key = parsePublicKey(device.blob)
  const message = Buffer.from('session identifier and request')
  const check = (signature: Buffer, signed = message) =>
    isSignedBy(key, { algorithm: type, hash: undefined, signed, signature: device.handedOver(signature) })

  it('is taken, fifty times over', () => {
    for (let n = 0; n < 50; n++) expect(check(device.sign(message, { counter: n }))).toBe(true)
    expect(check(device.sign(message, { flags: 5 }))).toBe(true)
  })

  it('is refused without a touch, for another message, another application and another key', () => {
    expect(check(device.sign(message, { flags: 0 }))).toBe(false)
    expect(check(device.sign(message, { flags: 4 }))).toBe(false)
    expect(check(device.sign(message), Buffer.from('another'))).toBe(false)
    expect(check(device.sign(message, { application: 'ssh:other' }))).toBe(false)
    expect(check(new SoftwareAuthenticator(type).sign(message))).toBe(false)
  })

  it('is refused when flags or counter were changed afterwards', () => {
    const signature = device.sign(message)
    for (let back = 1; back <= 5; back++) {
      const changed = Buffer.from(signature)
      changed.writeUInt8(changed.readUInt8(changed.length - back) ^ 0x02, changed.length - back)
      expect(check(changed)).toBe(false)
    }
  })

  it('is refused at every length that is not its own, and never throws', () => {
    const signature = device.handedOver(device.sign(message))
    for (let length = 0; length < signature.length; length++) {
      const cut = signature.subarray(0, length)
      expect(isSignedBy(key, { algorithm: type, hash: undefined, signed: message, signature: cut })).toBe(false)
    }
    const longer = Buffer.concat([signature, Buffer.alloc(1)])
    expect(isSignedBy(key, { algorithm: type, hash: undefined, signed: message, signature: longer })).toBe(false)
  })

  it('signs OpenSSH’s client in, and not without a touch', async () => {
    await using gateway = await startTestGateway()
    const account = await gateway.addAccount()
    await addKey(gateway.sql, account, parseKeyLine(`${type} ${device.blob.toString('base64')} token@laptop`))
    const signIn = async (options: SignOptions) => {
      const path = join(gateway.directory, `agent${options.flags}`)
      await using _agent = await serveAgent(path, device, options)
      return await gateway.ssh({ args: ['-o', `IdentityAgent=${path}`, '-i', '/dev/null'], command: ['ls'] })
    }
    expect(await signIn({ flags: 1 })).toMatchObject({ status: 0, stdout: `lobby of ${account}: ls\n`, stderr: '' })
    expect(await signIn({ flags: 0 })).toMatchObject({
      status: 255,
      stderr: expect.stringContaining('Permission denied'),
    })
  })

  it('is what OpenSSH verifies too', () => {
    const directory = mkdtempSync(join(tmpdir(), 'berth-sk-'))
    try {
      // SSHSIG (PROTOCOL.sshsig) is the one form in which ssh-keygen verifies a given sk signature.
      const hash = createHash('sha512').update(message).digest()
      const parts = [string('test'), string(''), string('sha512')]
      const wrapped = Buffer.concat([Buffer.from('SSHSIG'), ...parts, string(hash)])
      const version = Buffer.of(0, 0, 0, 1)
      const blob = Buffer.concat([
        Buffer.from('SSHSIG'),
        version,
        string(device.blob),
        ...parts,
        string(device.sign(wrapped)),
      ])
      const armored = blob.toString('base64').replace(/.{1,70}/g, '$&\n')
      writeFileSync(join(directory, 'sig'), `-----BEGIN SSH SIGNATURE-----\n${armored}-----END SSH SIGNATURE-----\n`)
      writeFileSync(join(directory, 'signers'), `me ${type} ${device.blob.toString('base64')}\n`)
      const args = [
        '-Y',
        'verify',
        '-n',
        'test',
        '-I',
        'me',
        '-f',
        join(directory, 'signers'),
        '-s',
        join(directory, 'sig'),
      ]
      expect(execFileSync('ssh-keygen', args, { input: message, encoding: 'utf8' })).toContain(
        'Good "test" signature for me',
      )
    } finally {
      rmSync(directory, { recursive: true, force: true })
    }
  })
})

describe('an RSA signature', () => {
  it('is refused with SHA-1, even when it is right', async () => {
    const { privateKey, publicKey } = generateKeyPairSync('rsa', { modulusLength: 2048 })
    const { n, e } = publicKey.export({ format: 'jwk' })
    const blob = Buffer.concat([
      string('ssh-rsa'),
      mpint(Buffer.from(String(e), 'base64url')),
      mpint(Buffer.from(String(n), 'base64url')),
    ])
    const key = parsePublicKey(blob)
    const signed = Buffer.from('request')
    const check = (hash: string | undefined) =>
      isSignedBy(key, { algorithm: 'ssh-rsa', hash, signed, signature: sign(hash ?? 'sha1', signed, privateKey) })
    expect(check('sha512')).toBe(true)
    expect(check('sha256')).toBe(true)
    expect(check('sha1')).toBe(false)
    expect(check(undefined)).toBe(false)
  })
})

describe('an algorithm', () => {
  it('has to be that of the key', () => {
    const device = new SoftwareAuthenticator(ED25519)
    const message = Buffer.from('request')
    const signature = device.handedOver(device.sign(message))
    const key = parsePublicKey(device.blob)
    expect(isSignedBy(key, { algorithm: 'ssh-ed25519', hash: undefined, signed: message, signature })).toBe(false)
  })
})
