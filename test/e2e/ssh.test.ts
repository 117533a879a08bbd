import { createHash, randomBytes } from 'node:crypto'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { OUTSIDE_ADDRESS, type Product, SERVER_ADDRESS, SSH_PORT, startProduct } from './product.ts'

/** What OpenSSH can do, through the gateway into a real machine, one product and one machine for the whole file. */
let product: Product
const demo = `demo@${SERVER_ADDRESS}`

beforeAll(async () => {
  product = await startProduct()
  const made = await product.lobby('new demo --image minimal --memory 512M --cpu 1 --disk 2G')
  expect(made, made.stderr).toMatchObject({ status: 0 })
})
afterAll(() => product?.[Symbol.asyncDispose]())

describe('commands', () => {
  it('pass exit status, streams apart, and bytes that are no text', async () => {
    expect(await product.ssh([demo, 'echo out; echo err >&2; exit 37'])).toMatchObject({
      status: 37,
      stdout: 'out\n',
      stderr: 'err\n',
    })
    const bytes = randomBytes(100_000)
    const echoed = await product.ssh([demo, 'cat'], { input: bytes })
    expect(echoed.stdoutBytes.equals(bytes)).toBe(true)
  })

  it('report a signal that ended them', async () => {
    expect((await product.ssh([demo, 'kill -TERM $$'])).status).toBe(255)
    expect((await product.ssh(['-v', demo, 'kill -KILL $$'])).stderr).toMatch(/signal KILL|exit-signal/)
  })

  it('may be 100 KB long and hold any bytes but NUL', async () => {
    const long = 'x'.repeat(100_000)
    const command = `printf %s '${long}' | wc -c`
    expect((await product.ssh([demo, command])).stdout.trim()).toBe('100000')
    const latin = Buffer.concat([
      Buffer.from("printf '%s' '"),
      Buffer.from([0xe9, 0xff, 0xfe]),
      Buffer.from("' | od -An -tx1"),
    ])
    const script = join(product.home, 'latin.sh')
    writeFileSync(script, Buffer.concat([Buffer.from('exec ssh "$@" "$(cat "$CMD")"\n')]))
    writeFileSync(join(product.home, 'latin.cmd'), latin)
    const shown = await product.outside('sh', [script, ...product.sshOptions, demo], {
      env: { CMD: join(product.home, 'latin.cmd') },
    })
    expect(shown.stdout.trim()).toBe('e9 ff fe')
  })

  it('see the end of their input while they still print', async () => {
    expect((await product.ssh([demo, 'wc -c; sleep 1; echo later'], { input: 'four' })).stdout).toBe('4\nlater\n')
  })

  it('run 20 at once and 20 one after the other without a failure', async () => {
    const twenty = await Promise.all(Array.from({ length: 20 }, (_, n) => product.ssh([demo, `echo ${n}`])))
    expect(twenty.map(({ stdout, stderr }) => stdout.trim() + stderr)).toEqual(twenty.map((_, n) => String(n)))
    for (let n = 0; n < 20; n++) {
      const one = await product.ssh([demo, 'true'])
      expect(one, `${n}: ${one.stderr}`).toMatchObject({ status: 0 })
    }
  })

  it('reach another login user with user+name, and root', async () => {
    expect((await product.ssh([`root+demo@${SERVER_ADDRESS}`, 'id -un'])).stdout).toBe('root\n')
    expect((await product.ssh([demo, 'id -un'])).stdout).toBe('dev\n')
  })
})

describe('terminals', () => {
  it('carry size, resizing, terminal modes, TERM and Ctrl-C', async () => {
    const terminal = product.terminal('ssh', ['-tt', ...product.sshOptions, demo], { columns: 91, rows: 33 })
    await terminal.expect(/\$ /)
    terminal.type('stty size; echo "$TERM"\r')
    await terminal.expect(/33 91\r\n/)
    await terminal.expect('xterm-256color')
    terminal.resize(120, 40)
    terminal.type('stty size; stty -a | tr ";" "\\n" | grep -c "intr = ^C"\r')
    await terminal.expect(/40 120\r\n1/)
    // Said by the child itself: it has the terminal then, and a Ctrl-C is its own and not the shell's.
    terminal.type('sh -c "echo $((6*7)) sleeps; exec sleep 1000"\r')
    await terminal.expect(/42 sleeps/)
    terminal.type('\x03')
    await terminal.expect(/\^C[\s\S]*\$ /)
    terminal.type('exit 5\r')
    expect(await terminal.ended).toBe(5)
  })
})

describe('files', () => {
  const hash = (bytes: Buffer) => createHash('sha256').update(bytes).digest('hex')

  it.each([
    ['scp over SFTP', ['-s']],
    ['scp over its old protocol', ['-O']],
  ])('%s copies there and back', async (_what, mode) => {
    const bytes = randomBytes(3_000_000)
    writeFileSync(join(product.home, 'there'), bytes)
    const options = [...mode, ...product.sshOptions]
    // The old protocol has the name expanded by the far shell, so a space would be two names.
    const target = `${demo}:over${mode[0] === '-s' ? ' ' : ''}${mode[0]}.bin`
    expect(await product.outside('scp', [...options, 'there', target])).toMatchObject({ status: 0, stderr: '' })
    expect(await product.outside('scp', [...options, target, 'back'])).toMatchObject({ status: 0 })
    expect(hash(readFileSync(join(product.home, 'back')))).toBe(hash(bytes))
  })

  it('sftp makes, lists and fetches', async () => {
    const batch = 'mkdir made\nput known_hosts made/kh\nls -1 made\nget made/kh fetched\n'
    const done = await product.outside('sftp', [...product.sshOptions, '-b', '-', demo], { input: batch })
    expect(done).toMatchObject({ status: 0 })
    expect(readFileSync(join(product.home, 'fetched'))).toEqual(readFileSync(join(product.home, 'known_hosts')))
  })
})

describe('forwarding', () => {
  const background = (parameters: string[]) =>
    product.terminal('ssh', ['-N', '-v', ...product.sshOptions, ...parameters, demo])

  it('-L reaches a port inside the machine, -R a port outside, -D any of them', async () => {
    // The minimal image has no other server than the platform's own sshd, so that is what is reached.
    const forward = background([
      '-o',
      'LogLevel=VERBOSE',
      '-L',
      '4001:127.0.0.1:22',
      '-R',
      '4002:127.0.0.1:4003',
      '-D',
      '4004',
    ])
    await forward.expect(/remote forward success|Remote: Forwarding listen address|forwarding for/i)
    const banner = await product.outside('bash', ['-c', 'exec 3<>/dev/tcp/127.0.0.1/4001; head -c 7 <&3'])
    expect(banner.stdout).toBe('SSH-2.0')
    const socks = await product.outside(
      'curl',
      ['-s', '-m', '10', '--http0.9', '--socks5-hostname', '127.0.0.1:4004', 'telnet://127.0.0.1:22'],
      { timeoutMs: 20_000 },
    )
    expect(socks.stdout).toContain('SSH-2.0')
    const listening = product.outside('python3', [
      '-c',
      'import socket; s=socket.create_server(("127.0.0.1",4003)); c,_=s.accept(); c.sendall(b"welcome\\n"); print(c.recv(99).decode())',
    ])
    // The sshd inside listens before anybody does outside: only an answer says that somebody is there.
    const said = await product.ssh([
      demo,
      `for i in $(seq 100); do { exec 3<>/dev/tcp/127.0.0.1/4002; } 2>/dev/null
        read -r -t 10 line <&3 && test "$line" = welcome && echo from inside >&3 && exit; sleep 0.2; done 2>/dev/null; exit 1`,
    ])
    expect(said).toMatchObject({ status: 0 })
    expect((await listening).stdout).toContain('from inside')
    forward.kill()
  })

  it('forwards the agent to the session that asked and to no other', async () => {
    const script = `eval "$(ssh-agent)" >/dev/null; ssh-add -q ${join(product.home, 'id_ed25519')}
      ssh "$@" -A ${demo} 'test -S "$SSH_AUTH_SOCK" && echo has agent'
      ssh "$@" ${demo} 'test -z "$SSH_AUTH_SOCK" && echo has none'; kill $SSH_AGENT_PID`
    const { stdout } = await product.outside('sh', ['-c', script, 'sh', ...product.sshOptions])
    expect(stdout).toBe('has agent\nhas none\n')
  })

  it('forwards Unix sockets both ways', async () => {
    const inside = { here: `${product.home}/in.sock`, there: '/tmp/inside.sock' }
    const outside = { here: `${product.home}/outside.sock`, there: '/tmp/out.sock' }
    const forward = product.terminal('ssh', [
      ...['-N', ...product.sshOptions, '-o', 'ExitOnForwardFailure=yes'],
      ...['-L', `${inside.here}:${inside.there}`, '-R', `${outside.there}:${outside.here}`, demo],
    ])
    // The machine has no Python; Perl is part of every Debian.
    const serve = (
      path: string,
    ) => `use IO::Socket::UNIX; my $s = IO::Socket::UNIX->new(Local => "${path}", Listen => 1);
      my $c = $s->accept; my $line = <$c>; print $c "heard $line"; close $c`
    const ask = (path: string, word: string) => `use IO::Socket::UNIX; my $s; for (1..100) {
      $s = IO::Socket::UNIX->new(Peer => "${path}") and last; select undef, undef, undef, 0.2 }
      print $s "${word}\n"; $s->flush; print <$s>`
    const outsideServer = product.outside('perl', ['-e', serve(outside.here)])
    const insideServer = product.ssh([demo, 'perl'], { input: serve(inside.there) })
    const fromInside = await product.ssh([`root+${demo}`, 'perl'], { input: ask(outside.there, 'from inside') })
    expect(fromInside).toMatchObject({ status: 0, stdout: 'heard from inside\n' })
    await product.ssh([demo, `for i in $(seq 100); do test -S ${inside.there} && break; sleep 0.2; done`])
    const fromOutside = await product.outside('perl', ['-e', ask(inside.here, 'from outside')])
    expect(fromOutside).toMatchObject({ status: 0, stdout: 'heard from outside\n' })
    expect(await outsideServer).toMatchObject({ status: 0 })
    expect(await insideServer).toMatchObject({ status: 0 })
    forward.kill()
  })

  it('-J reaches the machine end to end, with the same key, and no machine that is not one’s own', async () => {
    const jump = ['-J', `${SERVER_ADDRESS}:${SSH_PORT}`]
    const config = join(product.home, 'config')
    writeFileSync(
      config,
      `Host *\n  IdentityFile ${product.home}/id_ed25519\n  IdentitiesOnly yes\n  StrictHostKeyChecking accept-new\n  UserKnownHostsFile ${product.home}/known_hosts\n  LogLevel ERROR\n`,
    )
    // A refused channel is told at OpenSSH's ordinary log level.
    const loud = join(product.home, 'loud')
    writeFileSync(loud, readFileSync(config, 'utf8').replace('LogLevel ERROR', 'LogLevel INFO'))
    const reached = await product.outside('ssh', ['-F', config, ...jump, 'dev@demo', 'hostname'])
    expect(reached, reached.stderr).toMatchObject({ status: 0, stdout: 'demo\n' })
    const refused = await product.outside('ssh', ['-F', loud, ...jump, 'dev@127.0.0.1', 'hostname'])
    expect(refused.status).toBe(255)
    expect(refused.stderr).toMatch(/no machine called 127\.0\.0\.1; only your machines/)
  })

  it('works under ControlMaster, with sessions that share it', async () => {
    const control = ['-o', `ControlPath=${product.home}/cm`, '-o', 'ControlMaster=auto', '-o', 'ControlPersist=20']
    const all = await Promise.all([1, 2, 3].map((n) => product.ssh([...control, demo, `echo ${n}`])))
    expect(all.map(({ stdout }) => stdout)).toEqual(['1\n', '2\n', '3\n'])
    await product.ssh([...control, '-O', 'exit', demo])
  })
})

describe('refusals', () => {
  it('a slip of the fingers runs nothing and says where the lobby is', async () => {
    const slip = await product.ssh([`tpyo@${SERVER_ADDRESS}`, 'rm demo'])
    expect(slip.status).toBe(3)
    expect(slip.stderr).toMatch(/no machine called tpyo/)
    expect((await product.lobby('ls --json')).stdout).toContain('"vm_name":"demo"')
  })

  it('an unknown key without a terminal is told what to type', async () => {
    const key = join(product.home, 'stranger')
    await product.outside('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', key])
    const options = product.sshOptions.map((word) => (word === join(product.home, 'id_ed25519') ? key : word))
    const told = await product.outside('ssh', [...options, demo, 'true'])
    expect(told).toMatchObject({ status: 4, stdout: '' })
    expect(told.stderr.trim().split('\n')).toHaveLength(1)
    expect(told.stderr).toMatch(/in a terminal: ssh -p 2222 /)
  })

  it('the outside world reaches no machine around the gateway', async () => {
    const { stdout } = await product.lobby('ls --json')
    const address = (JSON.parse(stdout) as { vms: { ip: string }[] }).vms[0]?.ip ?? ''
    expect(address).toMatch(/^10\.42\./)
    const around = await product.outside('bash', [
      '-c',
      `ip route add 10.42.0.0/16 via ${SERVER_ADDRESS}; timeout 3 bash -c '</dev/tcp/${address}/22' && echo reached; ip route del 10.42.0.0/16`,
    ])
    expect(around.stdout).toBe('')
    expect(OUTSIDE_ADDRESS).not.toBe(address)
  })
})
