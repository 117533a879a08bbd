/** Clients other than this server's OpenSSH, each the real program or library: they sign in, run commands, carry files. */
import { execFileSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { testArtifacts } from '../../test/e2e/artifacts.ts'
import { run } from '../../test/gateway.ts'
import { addKey } from '../accounts/keys.ts'
import { fingerprintOf, parseKeyLine } from '../accounts/public-key.ts'
import { startWithMachine, type WithMachine } from './testing/with-machine.ts'

let world: WithMachine
let port: string
/** OpenSSH's known_hosts with the gateway's key, and that key's `SHA256:…` */
let knownHosts: string
let hostFingerprint: string

beforeAll(async () => {
  world = await startWithMachine()
  const { gateway, account, running } = world
  await gateway.addMachine(account, 'demo', running)
  port = String(gateway.port)
  knownHosts = join(gateway.directory, 'known_hosts')
  hostFingerprint = fingerprintOf(Buffer.from(gateway.app.hostPublicKey.split(' ')[1] ?? '', 'base64'))
})
afterAll(() => world?.[Symbol.asyncDispose]())

async function register(line: string): Promise<void> {
  await addKey(world.gateway.sql, world.account, parseKeyLine(line))
}

/** Debian's own, which has Debian's paramiko and asyncssh. */
const python = (program: string, ...parameters: string[]) =>
  run('/usr/bin/python3', ['-W', 'ignore', '-c', program, port, knownHosts, world.key, ...parameters])

/** @returns a file of the test's own, and where another may be written */
function files(name: string): { content: Buffer; file: string; far: string; back: string } {
  const content = randomBytes(1_000_000)
  const file = join(world.gateway.directory, name)
  writeFileSync(file, content)
  return { content, file, far: `${file}.far`, back: `${file}.back` }
}

describe('the lobby answers', () => {
  const ran = () => ({ status: 0, stdout: `lobby of ${world.account}: ls\n` })

  it('paramiko', async () => {
    const key = world.gateway.makeKey('paramiko', 'rsa', 2048)
    await register(world.gateway.publicKey(key))
    const program = `
import sys, paramiko
port, known, _, key = sys.argv[1:]
client = paramiko.SSHClient()
client.load_host_keys(known)
client.connect('127.0.0.1', int(port), 'lobby', key_filename=key, allow_agent=False, look_for_keys=False)
_, out, _ = client.exec_command('ls')
sys.stdout.write(out.read().decode())
sys.exit(out.channel.recv_exit_status())`
    expect(await python(program, key)).toMatchObject(ran())
  })

  it('asyncssh', async () => {
    const key = world.gateway.makeKey('asyncssh', 'ecdsa', 256)
    await register(world.gateway.publicKey(key))
    const program = `
import sys, asyncio, asyncssh
port, known, _, key = sys.argv[1:]
async def main():
    async with asyncssh.connect('127.0.0.1', int(port), username='lobby', client_keys=[key], known_hosts=known, config=None) as client:
        done = await client.run('ls')
        sys.stdout.write(done.stdout)
        return done.exit_status
sys.exit(asyncio.run(main()))`
    expect(await python(program, key)).toMatchObject(ran())
  })

  it('dropbear', async () => {
    const key = join(world.gateway.directory, 'dropbear')
    execFileSync('dropbearkey', ['-t', 'ed25519', '-f', key], { stdio: 'ignore' })
    await register(execFileSync('dropbearkey', ['-y', '-f', key], { encoding: 'utf8' }).split('\n')[1] ?? '')
    expect(await run('dbclient', ['-y', '-y', '-i', key, '-p', port, 'lobby@127.0.0.1', 'ls'])).toMatchObject(ran())
  })

  it('PuTTY', async () => {
    const key = world.gateway.makeKey('putty')
    await register(world.gateway.publicKey(key))
    execFileSync('puttygen', [key, '-o', `${key}.ppk`])
    const options = ['-batch', '-ssh', '-noagent', '-i', `${key}.ppk`, '-hostkey', hostFingerprint, '-P', port]
    expect(await run('plink', [...options, 'lobby@127.0.0.1', 'ls'])).toMatchObject(ran())
  })
})

describe('a machine is as on its own sshd', () => {
  it('with asyncssh: streams, statuses, terminals, files and forwards on one connection', async () => {
    const { file, far, back } = files('asyncssh-file')
    const program = `
import sys, os, asyncio, asyncssh
port, known, key, file, far, back = sys.argv[1:]
async def main():
    async with asyncssh.connect('127.0.0.1', int(port), username='demo', client_keys=[key], known_hosts=known, config=None) as client:
        data = os.urandom(1_000_000)
        done = await client.run('cat; echo err >&2; exit 7', input=data, encoding=None)
        assert (done.stdout, done.stderr, done.exit_status) == (data, b'err\\n', 7)
        killed = await client.run('kill -TERM $$')
        assert killed.exit_signal[0] == 'TERM', killed
        seen = await client.run('stty size; echo $TERM', term_type='xterm', term_size=(90, 40))
        assert seen.stdout.split() == ['40', '90', 'xterm'], seen.stdout
        async with client.start_sftp_client() as sftp:
            await sftp.put(file, far)
            await sftp.get(far, back)
        listener = await client.forward_local_port('127.0.0.1', 0, '127.0.0.1', ${world.sshd.target.port})
        reader, writer = await asyncio.open_connection('127.0.0.1', listener.get_port())
        assert await reader.readexactly(4) == b'SSH-'
        writer.close()
        many = await asyncio.gather(*(client.run('echo %d' % n) for n in range(20)))
        assert [int(one.stdout) for one in many] == list(range(20))
        print('all well')
asyncio.run(main())`
    expect(await python(program, file, far, back)).toMatchObject({ status: 0, stdout: 'all well\n' })
    expect(readFileSync(back).equals(readFileSync(file))).toBe(true)
  })

  it.each(['sftp', 'scp'])('with libssh2, in curl: %s there and back', async (scheme) => {
    const { content, file, far, back } = files(`libssh2-${scheme}`)
    const [, fingerprint = ''] = hostFingerprint.split(':')
    const options = ['-sS', '--key', world.key, '--pubkey', `${world.key}.pub`, '--hostpubsha256', fingerprint]
    const url = `${scheme}://demo@127.0.0.1:${port}${far}`
    expect(await run('curl', [...options, '-T', file, url])).toMatchObject({ status: 0, stderr: '' })
    expect(readFileSync(far).equals(content)).toBe(true)
    expect(await run('curl', [...options, '-o', back, url])).toMatchObject({ status: 0, stderr: '' })
    expect(readFileSync(back).equals(content)).toBe(true)
  })

  it('with Go’s x/crypto/ssh, in rclone: a tree of files, compared by what runs on the machine', async () => {
    const tree = join(world.gateway.directory, 'tree')
    for (let n = 0; n < 20; n++) {
      mkdirSync(join(tree, `d${n % 4}`), { recursive: true })
      writeFileSync(join(tree, `d${n % 4}`, `f${n}`), randomBytes(n * 5000))
    }
    const options = [
      ...['--config', '/dev/null', '--sftp-host', '127.0.0.1', '--sftp-port', port, '--sftp-user', 'demo'],
      ...['--sftp-key-file', world.key, '--sftp-known-hosts-file', knownHosts],
    ]
    expect(await run('rclone', ['copy', ...options, tree, `:sftp:${tree}.far`])).toMatchObject({ status: 0 })
    const check = await run('rclone', ['check', '-v', ...options, tree, `:sftp:${tree}.far`])
    expect(check).toMatchObject({ status: 0, stderr: expect.stringContaining('20 matching files') })
  })
})

/** The image that machines are made of has the OpenSSH of Debian 13; this server's own is Debian 12's. */
describe('OpenSSH 10, from the base image', () => {
  let image: string
  beforeAll(async () => {
    image = join(await testArtifacts(), 'images', 'base', 'root.raw')
  })

  /** Runs a script in the image, read-only, in mounts of its own; the test's folder is /mnt there. */
  function inImage(script: string, input?: Buffer) {
    const { directory } = world.gateway
    const root = join(directory, 'image')
    mkdirSync(root, { recursive: true })
    const enter = `mount -o loop,ro,noload "$1" "$2" && mount --rbind /dev "$2/dev" && mount --bind "$3" "$2/mnt" &&
      exec chroot "$2" sh -c "$4"`
    return run('unshare', ['--mount', 'sh', '-c', enter, 'sh', image, root, directory, script], input)
  }
  const given = (known = 'UserKnownHostsFile=/mnt/known_hosts -o StrictHostKeyChecking=yes') =>
    `-F none -i /mnt/${basename(world.key)} -o ${known} -o BatchMode=yes`

  it('agrees on a key exchange that is safe from quantum computers, and prints no warning', async () => {
    const said = await inImage(`ssh -V; ssh -v -p ${port} ${given()} lobby@127.0.0.1 ls`)
    expect(said).toMatchObject({ status: 0, stdout: `lobby of ${world.account}: ls\n` })
    expect(said.stderr).toMatch(/^OpenSSH_10\./)
    expect(said.stderr).toContain('kex: algorithm: mlkem768x25519-sha256')
    const plain = await inImage(`ssh -p ${port} ${given()} lobby@127.0.0.1 ls`)
    expect(plain.stderr).toBe('')
  })

  it('runs commands, copies files and jumps', async () => {
    const input = randomBytes(1_000_000)
    const command = `ssh -p ${port} ${given()} demo@127.0.0.1 'cat; echo err >&2; exit 7' > /mnt/ten.out`
    expect(await inImage(command, input)).toMatchObject({ status: 7, stderr: 'err\n' })
    expect(readFileSync(join(world.gateway.directory, 'ten.out')).equals(input)).toBe(true)

    const { content, far, back } = files('ten')
    for (const protocol of ['', '-O']) {
      const copy = `scp -q ${protocol} -P ${port} ${given()}`
      const both = `${copy} /mnt/ten demo@127.0.0.1:${far} && ${copy} demo@127.0.0.1:${far} /mnt/${basename(back)}`
      expect(await inImage(both), protocol).toMatchObject({ status: 0, stderr: '' })
      expect(readFileSync(back).equals(content)).toBe(true)
    }

    const proxy = `-o "ProxyCommand=ssh -p ${port} ${given()} -W %h:22 lobby@127.0.0.1"`
    // The machine's own key is not in known_hosts: the gateway is not between the two any more.
    const machine = given('UserKnownHostsFile=/dev/null -o StrictHostKeyChecking=no -o LogLevel=ERROR')
    const jumped = await inImage(`ssh ${machine} ${proxy} root@demo echo there`)
    expect(jumped).toMatchObject({ status: 0, stdout: 'there\n' })
  })
})
