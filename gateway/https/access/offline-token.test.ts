import { createHash } from 'node:crypto'
import { expect, it } from 'vitest'
import { ECDSA, ED25519, type SignOptions, SoftwareAuthenticator, string } from '../../ssh/software-authenticator.ts'
import { parseOfflineToken } from './offline-token.ts'

const claims = JSON.stringify({ exp: Math.round(Date.now() / 1000) + 60 })

const readOfflineToken = (token: string) => parseOfflineToken(token).verify()

/** PROTOCOL.sshsig, by hand: ssh-keygen has no authenticator here. */
function mint(device: SoftwareAuthenticator, options: SignOptions = {}, namespace = 'v0@demo.example'): string {
  const magic = Buffer.from('SSHSIG')
  const version = Buffer.of(0, 0, 0, 1)
  const hash = createHash('sha512').update(claims).digest()
  const message = Buffer.concat([magic, string(namespace), string(''), string('sha512'), string(hash)])
  const signature = device.sign(message, options)
  const blob = Buffer.concat([
    magic,
    version,
    string(device.blob),
    string(namespace),
    string(''),
    string('sha512'),
    string(signature),
  ])
  return `exe0.${Buffer.from(claims).toString('base64url')}.${blob.toString('base64url')}`
}

it.each([ED25519, ECDSA] as const)('a token signed with a FIDO key (%s) is good when its owner touched it', (type) => {
  const device = new SoftwareAuthenticator(type)
  expect(readOfflineToken(mint(device))).toMatchObject({ publicKey: device.blob, namespace: 'v0@demo.example' })
  expect(() => readOfflineToken(mint(device, { flags: 0 }))).toThrow('the signature is not right')
  expect(() => readOfflineToken(mint(device, { application: 'web:' }))).toThrow('the signature is not right')
})

it.each([
  '',
  'exe0',
  'exe0.',
  'exe0..',
  'exe0.e30.',
  'exe0.e30.AAAA',
  'exe0.e30.U1NIU0lH',
  `exe0.${'a'.repeat(9000)}.b`,
  'exe0.!.?',
])('%j is refused with a sentence', (token) => {
  expect(() => readOfflineToken(token)).toThrow(/^(the|that)/)
})

it('it has one spelling', () => {
  const token = mint(new SoftwareAuthenticator(ED25519))
  for (const other of [
    `${token}A`,
    `${token}=`,
    `${token}!`,
    `${token}\n`,
    token.replace('exe0.', 'exe0.='),
    `${token}.`,
  ]) {
    expect(() => readOfflineToken(other), JSON.stringify(other)).toThrow()
  }
})

it('every byte counts', () => {
  const token = mint(new SoftwareAuthenticator(ED25519))
  const [prefix, payload = '', signature = ''] = token.split('.')
  const bytes = Buffer.from(signature, 'base64url')
  for (let index = 0; index < bytes.length; index++) {
    const changed = Buffer.from(bytes)
    changed[index] = (changed[index] ?? 0) ^ 1
    const read = () => readOfflineToken(`${prefix}.${payload}.${changed.toString('base64url')}`)
    expect(read, `byte ${index}`).toThrow()
  }
})
