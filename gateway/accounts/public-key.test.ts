import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { ECDSA, ED25519, SoftwareAuthenticator, string } from '../ssh/software-authenticator.ts'
import { authorizedKeysForm, parseKeyFile, parseKeyLine, parsePublicKey } from './public-key.ts'

const directory = mkdtempSync(join(tmpdir(), 'berth-keys-'))
afterAll(() => rmSync(directory, { recursive: true, force: true }))

let count = 0
function generate(type: string, bits?: number, comment = 'alice@laptop') {
  const path = join(directory, `key${count++}`)
  const size = bits ? ['-b', String(bits)] : []
  execFileSync('ssh-keygen', ['-q', '-N', '', '-t', type, ...size, '-C', comment, '-f', path])
  const line = readFileSync(`${path}.pub`, 'utf8')
  const [, fingerprint] = execFileSync('ssh-keygen', ['-l', '-f', `${path}.pub`], { encoding: 'utf8' }).split(' ')
  return { path, line, fingerprint }
}

describe('a line of a .pub file', () => {
  it.each([
    ['ed25519', undefined, 'ssh-ed25519'],
    ['ecdsa', 256, 'ecdsa-sha2-nistp256'],
    ['ecdsa', 384, 'ecdsa-sha2-nistp384'],
    ['ecdsa', 521, 'ecdsa-sha2-nistp521'],
    ['rsa', 2048, 'ssh-rsa'],
    ['rsa', 3072, 'ssh-rsa'],
  ])('of an %s %s key has ssh-keygen’s fingerprint', (type, bits, algorithm) => {
    const { line, fingerprint } = generate(type, bits)
    const { key, comment } = parseKeyLine(`  ${line}`)
    expect(key).toMatchObject({ algorithm, fingerprint })
    expect(comment).toBe('alice@laptop')
    expect(`${authorizedKeysForm(key.blob)} alice@laptop`).toBe(line.trim())
  })

  it.each([ED25519, ECDSA] as const)('of an %s key keeps the application', (type) => {
    const { blob } = new SoftwareAuthenticator(type, 'ssh:work')
    const { key } = parseKeyLine(`${type} ${blob.toString('base64')} token`)
    expect(key).toMatchObject({ algorithm: type, application: Buffer.from('ssh:work') })
  })

  it('may be in the form that PuTTY saves', () => {
    const { path, line } = generate('rsa', 2048)
    const text = execFileSync('ssh-keygen', ['-e', '-m', 'RFC4716', '-f', `${path}.pub`], { encoding: 'utf8' })
    expect(parseKeyLine(text).key.blob).toEqual(parseKeyLine(line).key.blob)
  })

  it('writes nothing on the terminal of whoever lists it', () => {
    const { line } = generate('ed25519', undefined, '\u001b[2Jevil\u202e')
    expect(parseKeyLine(line).comment).toBe('[2Jevil')
  })

  it('is refused with a sentence when it is no usable key', () => {
    const { path, line } = generate('ed25519')
    const weak = generate('rsa', 1024).line
    execFileSync('ssh-keygen', ['-q', '-s', path, '-I', 'me', '-n', 'me', `${generate('ed25519').path}.pub`])
    const certificate = readFileSync(join(directory, `key${count - 1}-cert.pub`), 'utf8')
    const [type = '', encoded = ''] = line.split(' ')
    const cut = encoded.slice(0, 40)
    const cases: [string, RegExp][] = [
      ['', /no key was given/],
      ['hello', /that is not a public key; expected a line such as ssh-ed25519/],
      [certificate, /that is a certificate; give the key it was made for/],
      [weak, /RSA keys need 2048 bits, this one has 1024/],
      [readFileSync(path, 'utf8'), /that is a private key: never give it to anyone/],
      [`command="date" ${line}`, /options before a key are not supported/],
      [`ssh-dss ${encoded}`, /DSA keys are too weak/],
      [`ssh-rsa ${encoded}`, /the line says ssh-rsa and holds a ssh-ed25519 key/],
      [`${type} ${cut}`, /the key is cut short/],
      [`${type} !!!`, /the key is not in base64/],
      [`${type} ${encoded}AAAA`, /not in base64|something after the end/],
      [`${line}${line}`, /expected one key on one line/],
      [`ssh-unknown ${encoded}`, /keys ssh-unknown are not known here/],
    ]
    for (const [text, sentence] of cases) expect(() => parseKeyLine(text), text.slice(0, 40)).toThrow(sentence)
  })
})

describe('the wire form', () => {
  it('is taken in one encoding only, so that no key can be added twice', () => {
    const { key } = parseKeyLine(generate('rsa', 2048).line)
    const reader = key.blob
    const exponent = string(Buffer.from([1, 0, 1]))
    expect(reader.includes(exponent)).toBe(true)
    const padded = Buffer.concat([string('ssh-rsa'), string(Buffer.from([0, 1, 0, 1])), reader.subarray(7 + 4 + 7)])
    expect(() => parsePublicKey(padded)).toThrow('a number in the key is not canonical')
    expect(() => parsePublicKey(Buffer.concat([key.blob, Buffer.of(0)]))).toThrow('something after the end')
  })

  it('refuses points that are not on the curve, and exponents that nobody uses', () => {
    const point = Buffer.concat([Buffer.of(4), Buffer.alloc(64, 7)])
    const blob = Buffer.concat([string('ecdsa-sha2-nistp256'), string('nistp256'), string(point)])
    expect(() => parsePublicKey(blob)).toThrow('that is not a valid ecdsa-sha2-nistp256 key')
    const modulus = string(Buffer.concat([Buffer.of(0), Buffer.alloc(256, 0xf1)]))
    for (const exponent of [Buffer.of(1), Buffer.of(2), Buffer.alloc(5, 0x11)]) {
      const key = Buffer.concat([string('ssh-rsa'), string(exponent), modulus])
      expect(() => parsePublicKey(key)).toThrow('the exponent of that RSA key is unusual')
    }
    const long = string(Buffer.concat([Buffer.of(0), Buffer.alloc(1025, 0xf1)]))
    const key = Buffer.concat([string('ssh-rsa'), string(Buffer.of(1, 0, 1)), long])
    expect(() => parsePublicKey(key)).toThrow('RSA keys have at most 8192 bits, this one has 8200')
  })

  it('never throws anything but a sentence, whatever the bytes', () => {
    const { key } = parseKeyLine(generate('ecdsa', 256).line)
    for (let length = 0; length < key.blob.length; length++) {
      expect(() => parsePublicKey(key.blob.subarray(0, length))).toThrow(/^(the key|that is not|keys )/)
    }
    for (let n = 0; n < 500; n++) {
      const changed = Buffer.from(key.blob)
      const at = (n * 7919) % changed.length
      changed.writeUInt8(changed.readUInt8(at) ^ (1 << (n % 8)), at)
      try {
        parsePublicKey(changed)
      } catch (error) {
        expect((error as Error).name).toBe('PublicKeyError')
      }
    }
  })
})

describe('an authorized_keys file', () => {
  it('gives its plain lines and passes over the rest', () => {
    const [one, two] = [generate('ed25519').line, generate('rsa', 2048).line]
    const text = `# keys\n\n${one}\r\nfrom="10.0.0.1" ${two}restrict ${two}ssh-ed25519 broken\n  ${two}`
    expect(parseKeyFile(text).map(({ key }) => key.algorithm)).toEqual(['ssh-ed25519', 'ssh-rsa'])
  })
})
