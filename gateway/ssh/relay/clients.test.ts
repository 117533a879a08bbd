import { execFileSync } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { chmodSync, copyFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { type Gateway, type Keys, type Machine, makeKeys, run, ssh, startGateway, startMachine } from './fixtures.ts'

let keys: Keys & Disposable
let machine: Machine
let gateway: Gateway

beforeAll(async () => {
  keys = makeKeys()
  machine = await startMachine(keys)
  gateway = await startGateway(keys, machine)
})

afterAll(async () => {
  await gateway[Symbol.asyncDispose]()
  await machine[Symbol.asyncDispose]()
  keys[Symbol.dispose]()
})

// Each cipher lays a packet out in its own way; what may take the short cut (transport/bulk.ts) depends on both
const clientCiphers = [
  ['aes128-gcm@openssh.com'],
  ['aes256-gcm@openssh.com'],
  ['chacha20-poly1305@openssh.com'],
  ['aes128-ctr', 'hmac-sha2-256-etm@openssh.com'],
  ['aes256-ctr', 'hmac-sha2-512'],
]
const machineCiphers = ['aes128-gcm@openssh.com', 'chacha20-poly1305@openssh.com', 'aes256-ctr']

describe.each(machineCiphers)('towards a machine that takes %s', (theirs) => {
  test('data of every size passes unharmed, whatever cipher the client takes', async () => {
    await using other = await startMachine(keys, [`Ciphers ${theirs}`])
    await using front = await startGateway(keys, other)
    const input = randomBytes(2_000_000)
    const file = join(keys.directory, 'any-size')
    writeFileSync(file, input)
    for (const [cipher, mac] of clientCiphers) {
      const options = ['-o', `Ciphers=${cipher}`, ...(mac === undefined ? [] : ['-o', `MACs=${mac}`])]
      const up = await ssh(keys, front.port, ['sha256sum'], { ssh: options, input })
      expect(up.stdout.toString()).toContain(createHash('sha256').update(input).digest('hex'))
      const odd = await ssh(keys, front.port, [`python3 -c '${oddWrites}' ${file}`], { ssh: options })
      expect(odd.stdout.equals(input)).toBe(true)
    }
  })
})

test('dropbear', async () => {
  const key = join(keys.directory, 'dropbear')
  execFileSync('dropbearconvert', ['openssh', 'dropbear', keys.clientKey, key], { stdio: 'ignore' })
  const options = ['-y', '-y', '-i', key, '-p', String(gateway.port), 'demo@127.0.0.1']
  const input = randomBytes(1_000_000)
  const outcome = await run('dbclient', [...options, 'cat; exit 7'], { input })
  expect(outcome.status).toBe(7)
  expect(outcome.stdout.equals(input)).toBe(true)
})

test('PuTTY', async () => {
  const copy = join(keys.directory, 'for-puttygen')
  const key = join(keys.directory, 'putty.ppk')
  copyFileSync(keys.clientKey, copy)
  chmodSync(copy, 0o600)
  execFileSync('puttygen', [copy, '-O', 'private', '-o', key])
  const { stdout: fingerprint } = await run('ssh-keygen', ['-lf', `${keys.hostKey}.pub`])
  const options = [
    '-batch',
    '-ssh',
    '-i',
    key,
    '-P',
    String(gateway.port),
    '-hostkey',
    String(fingerprint).split(' ')[1] ?? '',
  ]
  const input = randomBytes(1_000_000)
  const env = { HOME: keys.directory }
  const outcome = await run('plink', [...options, 'demo@127.0.0.1', 'cat; exit 7'], { input, env })
  expect(outcome.stderr.toString()).toBe('')
  expect(outcome.status).toBe(7)
  expect(outcome.stdout.equals(input)).toBe(true)
})

test('paramiko: commands, files, a forward', async () => {
  const script = `
import sys, io, os, paramiko
client = paramiko.SSHClient()
client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
client.connect('127.0.0.1', int(sys.argv[1]), 'demo', key_filename=sys.argv[2], look_for_keys=False, allow_agent=False)
stdin, stdout, stderr = client.exec_command('cat; echo err >&2; exit 7')
data = os.urandom(1_000_000)
stdin.write(data); stdin.channel.shutdown_write()
assert stdout.read() == data
assert stderr.read() == b'err\\n'
assert stdout.channel.recv_exit_status() == 7
sftp = client.open_sftp()
sftp.putfo(io.BytesIO(data), sys.argv[3])
back = io.BytesIO(); sftp.getfo(sys.argv[3], back)
assert back.getvalue() == data
through = client.get_transport().open_channel('direct-tcpip', ('127.0.0.1', int(sys.argv[4])), ('127.0.0.1', 0))
assert through.recv(4) == b'SSH-'
print('all well')
`
  const file = join(keys.directory, 'paramiko-file')
  const given = [String(gateway.port), keys.clientKey, file, String(machine.target.port)]
  const outcome = await run('/usr/bin/python3', ['-c', script, ...given])
  expect(outcome.stdout.toString() + outcome.stderr).toBe('all well\n')
})

const oddWrites = `
import os, sys
data = open(sys.argv[1], "rb").read()
size, at = 1, 0
while at < len(data):
    os.write(1, data[at:at + size])
    at += size
    size = size * 3 % 40961 + 1
`
