import { execFileSync } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { run, startTestGateway } from '../../test/gateway.ts'
import { addKey, removeKey } from '../accounts/keys.ts'
import { parseKeyLine } from '../accounts/public-key.ts'

describe('signing in', () => {
  it.each([
    ['ed25519', 256],
    ['ecdsa', 256],
    ['ecdsa', 384],
    ['ecdsa', 521],
    ['rsa', 2048],
    ['rsa', 3072],
  ])('takes a key of kind %s with %i bits from OpenSSH', async (type, bits) => {
    await using gateway = await startTestGateway()
    const key = gateway.makeKey('id', type, bits)
    const account = await gateway.addAccount({ keys: [key], owner: true })
    expect(await gateway.ssh({ key, command: ['ls', '-l'] })).toEqual({
      status: 0,
      signal: null,
      stdout: `lobby of ${account}: ls -l\n`,
      stderr: '',
    })
    expect((await gateway.ssh({ key, user: 'berth', command: ['fail'] })).status).toBe(1)
  })

  it('takes either SHA-2 of an RSA key', async () => {
    await using gateway = await startTestGateway()
    const key = gateway.makeKey('id', 'rsa', 2048)
    await gateway.addAccount({ keys: [key], owner: true })
    for (const algorithm of ['rsa-sha2-256', 'rsa-sha2-512']) {
      const args = ['-o', `PubkeyAcceptedAlgorithms=${algorithm}`]
      expect((await gateway.ssh({ key, args, command: ['ls'] })).status, algorithm).toBe(0)
    }
  })

  it('names public keys as the only method', async () => {
    await using gateway = await startTestGateway()
    const result = await gateway.ssh({ args: ['-o', 'PubkeyAuthentication=no', '-i', '/dev/null'], command: ['ls'] })
    expect(result.status).toBe(255)
    expect(result.stderr).toContain('Permission denied (publickey)')
  })

  it('finds the known key among many, whatever comes before it, and counts no offer as an attempt', async () => {
    await using gateway = await startTestGateway({ limits: { failedSignatures: 1 } })
    const known = gateway.makeKey('known')
    const others = Array.from({ length: 12 }, (_, n) => gateway.makeKey(`other${n}`))
    const account = await gateway.addAccount({ keys: [known], owner: true })
    const keys = [...others, known].flatMap((key) => ['-i', key])
    const result = await gateway.ssh({ args: ['-o', 'IdentitiesOnly=yes', ...keys], command: ['ls'] })
    expect(result).toMatchObject({ status: 0, stdout: `lobby of ${account}: ls\n`, stderr: '' })
  })

  it('finds the known key among many in an agent', async () => {
    await using gateway = await startTestGateway()
    const known = gateway.makeKey('known')
    const account = await gateway.addAccount({ keys: [known], owner: true })
    const socket = join(gateway.directory, 'agent')
    const started = execFileSync('ssh-agent', ['-a', socket], { encoding: 'utf8' })
    const pid = Number(/SSH_AGENT_PID=(\d+)/.exec(started)?.[1])
    try {
      const env = { ...process.env, SSH_AUTH_SOCK: socket }
      const keys = [gateway.makeKey('a'), gateway.makeKey('b', 'rsa', 2048), gateway.makeKey('c', 'ecdsa'), known]
      execFileSync('ssh-add', ['-q', ...keys], { env })
      const options = gateway.sshOptions().filter((option) => option !== 'IdentityAgent=none')
      const args = options.flatMap((option, n) => (option === '-o' && !options[n + 1]?.includes('=') ? [] : [option]))
      const result = await run('ssh', [...args, '-o', 'BatchMode=yes', 'lobby@127.0.0.1', 'ls'], undefined, env)
      expect(result).toMatchObject({ status: 0, stdout: `lobby of ${account}: ls\n` })
    } finally {
      process.kill(pid)
    }
  })

  it('tells an unknown key what to type, with status 4, whichever of its keys comes first', async () => {
    await using gateway = await startTestGateway()
    await gateway.addAccount({ owner: true })
    const key = gateway.makeKey('id')
    const expected = {
      status: 4,
      stdout: '',
      stderr: 'this key has no account here; to sign up, run in a terminal: ssh -p 0 localhost\n',
    }
    expect(await gateway.ssh({ key, command: ['ls'] })).toMatchObject(expected)
    expect(await gateway.ssh({ key, user: 'demo' })).toMatchObject(expected)
    const another = gateway.makeKey('another')
    const args = ['-o', 'IdentitiesOnly=yes', '-i', key, '-i', another]
    expect(await gateway.ssh({ args, command: ['ls'] })).toMatchObject(expected)
  })

  it('says where sign-up is closed', async () => {
    await using gateway = await startTestGateway({ env: { BERTH_SIGNUP: 'closed' } })
    await gateway.addAccount({ owner: true })
    expect(await gateway.ssh({ key: gateway.makeKey('id'), command: ['ls'] })).toMatchObject({
      status: 4,
      stderr:
        'this key has no account here, and sign-up is closed; add the key to your account from a signed-in one with: ssh-key add\n',
    })
  })

  it('lets an unknown key do nothing but sign up', async () => {
    await using gateway = await startTestGateway()
    const owner = await gateway.addAccount({ owner: true })
    await gateway.addMachine(owner, 'demo')
    const key = gateway.makeKey('id')
    const jump = await gateway.ssh({ key, args: ['-W', 'demo:22'] })
    expect(jump.status).toBe(255)
    const forward = await gateway.ssh({ key, args: ['-o', 'ExitOnForwardFailure=yes', '-N', '-R', '0:127.0.0.1:1'] })
    expect(forward.status).toBe(255)
    const sftp = await run('ssh', [...gateway.sshOptions(key), '-o', 'BatchMode=yes', '-s', 'lobby@127.0.0.1', 'sftp'])
    expect(sftp).toMatchObject({ status: 4, stdout: '' })
  })

  it('refuses keys that are too weak, and says so', async () => {
    await using gateway = await startTestGateway()
    const key = gateway.makeKey('id', 'rsa', 1024)
    const result = await gateway.ssh({ key, args: ['-o', 'RequiredRSASize=1024'], command: ['ls'] })
    expect(result.status).toBe(255)
    expect(result.stderr).toContain(
      'Berth: one of your keys cannot be used: RSA keys need 2048 bits, this one has 1024; make another with ssh-keygen -t ed25519',
    )
  })

  it('tells a suspended account, and lets it do nothing', async () => {
    await using gateway = await startTestGateway()
    const key = gateway.makeKey('id')
    const account = await gateway.addAccount({ keys: [key] })
    await gateway.sql`update accounts set suspended_at = now() where id = ${account}`
    expect(await gateway.ssh({ key, command: ['ls'] })).toMatchObject({
      status: 4,
      stdout: '',
      stderr: 'this account is suspended; ask whoever runs localhost\n',
    })
  })

  it('works for a hundred connections in a row and twenty at once', async () => {
    await using gateway = await startTestGateway()
    const key = gateway.makeKey('id')
    await gateway.addAccount({ keys: [key] })
    const statuses = async (count: number) =>
      await Promise.all(Array.from({ length: count }, async () => (await gateway.ssh({ key, command: ['ls'] })).status))
    expect(new Set(await statuses(20))).toEqual(new Set([0]))
    for (let round = 0; round < 100; round++) {
      expect((await gateway.ssh({ key, command: ['ls'] })).status, `connection ${round}`).toBe(0)
    }
    expect(gateway.server.signedInCount).toBeLessThanOrEqual(1)
  }, 120_000)
})

describe('where a name leads', () => {
  it('tells a slip of the fingers, and runs no lobby command for it', async () => {
    await using gateway = await startTestGateway()
    const key = gateway.makeKey('id')
    await gateway.addAccount({ keys: [key] })
    const expected = {
      status: 3,
      stdout: '',
      stderr: 'no machine called tpyo; the lobby is lobby@localhost\n',
    }
    expect(await gateway.ssh({ key, user: 'tpyo', command: ['rm', 'demo'] })).toMatchObject(expected)
    expect(await gateway.ssh({ key, user: 'tpyo', input: 'rm demo\n' })).toMatchObject(expected)
    expect(await gateway.ssh({ key, user: 'root+tpyo', command: ['true'] })).toMatchObject(expected)
    const sftp = await run('ssh', [...gateway.sshOptions(key), '-o', 'BatchMode=yes', '-s', 'tpyo@127.0.0.1', 'sftp'])
    expect(sftp).toMatchObject(expected)
  })

  it('leads to the lobby by a recorded name, its own account’s only', async () => {
    await using gateway = await startTestGateway()
    const [mine, theirs] = [gateway.makeKey('mine'), gateway.makeKey('theirs')]
    const account = await gateway.addAccount({ keys: [mine], names: ['alice'] })
    await gateway.addAccount({ keys: [theirs] })
    expect(await gateway.ssh({ key: mine, user: 'alice', command: ['ls'] })).toMatchObject({
      status: 0,
      stdout: `lobby of ${account}: ls\n`,
    })
    expect((await gateway.ssh({ key: theirs, user: 'alice', command: ['ls'] })).status).toBe(3)
  })

  it('shows somebody else’s machine as none', async () => {
    await using gateway = await startTestGateway()
    const [mine, theirs] = [gateway.makeKey('mine'), gateway.makeKey('theirs')]
    await gateway.addMachine(await gateway.addAccount({ keys: [mine] }), 'demo')
    await gateway.addAccount({ keys: [theirs] })
    expect(await gateway.ssh({ key: theirs, user: 'demo', command: ['true'] })).toMatchObject({
      status: 3,
      stderr: 'no machine called demo; the lobby is lobby@localhost\n',
    })
    expect(await gateway.ssh({ key: theirs, args: ['-W', 'demo:22'] })).toMatchObject({
      status: 255,
      stderr: expect.stringContaining('no machine called demo; only your machines can be reached through the lobby'),
    })
  })

  it('says of a machine that is off, failed or in the trash what to type', async () => {
    await using gateway = await startTestGateway()
    const key = gateway.makeKey('id')
    const account = await gateway.addAccount({ keys: [key] })
    await gateway.addMachine(account, 'off', { state: 'stopped' })
    await gateway.addMachine(account, 'broken', { state: 'failed', reason: 'its disk is full' })
    await gateway.addMachine(account, 'old', { state: 'trashed' })
    expect(await gateway.ssh({ key, user: 'off', command: ['true'] })).toMatchObject({
      status: 255,
      stderr: expect.stringContaining('off is off; to start it: start off'),
    })
    expect(await gateway.ssh({ key, user: 'broken' })).toMatchObject({
      status: 255,
      stderr: expect.stringContaining('broken failed: its disk is full; to try again: restart broken'),
    })
    expect((await gateway.ssh({ key, user: 'old', command: ['true'] })).status).toBe(3)
  })

  it('runs a list of commands from a pipe, one a line', async () => {
    await using gateway = await startTestGateway()
    const key = gateway.makeKey('id')
    const account = await gateway.addAccount({ keys: [key] })
    expect(await gateway.ssh({ key, input: 'ls\n\nfail' })).toMatchObject({
      status: 1,
      stdout: `lobby of ${account}: ls\nlobby of ${account}: fail\n`,
    })
    expect(await gateway.ssh({ key, input: 'ls\nexit\nfail\n' })).toMatchObject({ status: 0 })
    const quoted = `comment demo 'two\nlines'\r\nls\n`
    expect((await gateway.ssh({ key, input: quoted })).stdout).toBe(
      `lobby of ${account}: comment demo 'two\nlines'\nlobby of ${account}: ls\n`,
    )
  })

  it('reads no more of a line from a pipe than a line may have, whatever it is made of', async () => {
    await using gateway = await startTestGateway()
    const key = gateway.makeKey('id')
    const account = await gateway.addAccount({ keys: [key] })
    // An open quote makes one line of all that follows.
    for (const endless of ['x'.repeat(300_000), `ls 'a\n${'ls\n'.repeat(100_000)}`]) {
      expect(await gateway.ssh({ key, input: `ls\n${endless}` })).toMatchObject({
        status: 2,
        stdout: `lobby of ${account}: ls\n`,
        stderr: 'a command line has at most 256 KiB; is a quote not closed?\n',
      })
    }
  })

  it('has no files in the lobby', async () => {
    await using gateway = await startTestGateway()
    const key = gateway.makeKey('id')
    await gateway.addAccount({ keys: [key] })
    const sftp = await run('ssh', [...gateway.sshOptions(key), '-o', 'BatchMode=yes', '-s', 'lobby@127.0.0.1', 'sftp'])
    expect(sftp).toMatchObject({
      status: 2,
      stderr: 'the lobby has no sftp; use it on a machine: sftp NAME@localhost\n',
    })
  })
})

describe('keys added', () => {
  it('work at the next connection, and not at the next one after they were removed', async () => {
    await using gateway = await startTestGateway()
    const [key, first] = [gateway.makeKey('id'), gateway.makeKey('first')]
    const account = await gateway.addAccount({ keys: [first] })
    for (let round = 0; round < 3; round++) {
      expect((await gateway.ssh({ key, command: ['ls'] })).status).toBe(4)
      await addKey(gateway.sql, account, parseKeyLine(gateway.publicKey(key)), 'second')
      expect((await gateway.ssh({ key, command: ['ls'] })).status).toBe(0)
      await removeKey(gateway.sql, account, 'second')
    }
  })
})

describe('keys taken away', () => {
  it('end the connections that signed in with them, and no others, within a second', async () => {
    const hang = async () => await new Promise<number>(() => {})
    await using gateway = await startTestGateway({ lobby: { runLine: hang, runLobby: hang } })
    const [removed, kept] = [gateway.makeKey('removed'), gateway.makeKey('kept')]
    const account = await gateway.addAccount({ keys: [removed, kept] })
    const ending = gateway.ssh({ key: removed, command: ['wait'] })
    const staying = gateway.ssh({ key: kept, command: ['wait'] })
    await expect.poll(() => gateway.server.signedInCount).toBe(2)
    const began = performance.now()
    // The names of keys without a comment are those of their algorithm; the first one added is `removed`.
    await removeKey(gateway.sql, account, 'ssh-ed25519')
    const ended = await ending
    expect(performance.now() - began).toBeLessThan(1000)
    expect(ended.status).toBe(255)
    expect(ended.stderr).toContain('the key that this connection signed in with was removed from the account')
    await expect.poll(() => gateway.server.signedInCount).toBe(1)

    await gateway.sql`update accounts set suspended_at = now() where id = ${account}`
    const suspended = await staying
    expect(suspended.status).toBe(255)
    expect(suspended.stderr).toContain('this account is suspended')
  })
})

describe('a database that is away', () => {
  it('is told to whoever signs in meanwhile, and ends no connection', async () => {
    const { promise: released, resolve: release } = Promise.withResolvers<number>()
    await using gateway = await startTestGateway({ lobby: { runLine: () => released, runLobby: () => released } })
    const key = gateway.makeKey('id')
    await gateway.addAccount({ keys: [key] })
    const before = gateway.ssh({ key, command: ['wait'] })
    await expect.poll(() => gateway.server.signedInCount).toBe(1)
    await gateway.app.sql.end({ timeout: 1 })
    expect(await gateway.ssh({ key, command: ['ls'] })).toMatchObject({
      status: 255,
      stderr: expect.stringContaining('Berth: the database does not answer; try again in a moment'),
    })
    release(0)
    expect((await before).status).toBe(0)
  })

  it('may lose news: what was missed is looked up when it is back', async () => {
    const hang = async () => await new Promise<number>(() => {})
    await using gateway = await startTestGateway({ lobby: { runLine: hang, runLobby: hang } })
    const key = gateway.makeKey('id')
    await gateway.addAccount({ keys: [key] })
    const session = gateway.ssh({ key, command: ['wait'] })
    await expect.poll(() => gateway.server.signedInCount).toBe(1)
    // The trigger does not run and the listening connection is cut: no notification ever tells.
    await gateway.sql`alter table keys disable trigger tell_keys`
    await gateway.sql`delete from keys`
    await gateway.sql`
      select pg_terminate_backend(pid) from pg_stat_activity
      where datname = current_database() and query ilike 'listen%'`
    expect((await session).stderr).toContain('the key that this connection signed in with was removed')
  })
})

describe('what is written down', () => {
  it('notes when a key was last used', async () => {
    await using gateway = await startTestGateway()
    const key = gateway.makeKey('id')
    await gateway.addAccount({ keys: [key] })
    await gateway.ssh({ key, command: ['ls'] })
    await gateway.close(0)
    expect(await gateway.sql`select last_used_at is not null as used from keys`).toEqual([{ used: true }])
  })

  it('keeps its private keys encrypted, and offers the same host key after a restart', async () => {
    await using first = await startTestGateway()
    const { database, secretKey } = first
    await using second = await startTestGateway({ database, secretKey })
    expect(second.app.hostPublicKey).toBe(first.app.hostPublicKey)
    const rows = await first.sql<{ name: string; ciphertext: Buffer }[]>`select name, ciphertext from secrets`
    expect(rows.map((row) => row.name).sort()).toEqual(['gateway_key', 'owner_join_code', 'ssh_host_key'])
    for (const row of rows) expect(row.ciphertext.toString('latin1')).not.toContain('PRIVATE KEY')
    const settings = await first.sql`select value from settings where key = 'ssh_host_public_key'`
    expect(settings).toEqual([{ value: first.app.hostPublicKey }])
    await expect(startTestGateway({ database })).rejects.toThrow('secret.key is not the one it was sealed with')
  })

  it('agrees on one host key when several gateways start at the same moment', async () => {
    await using first = await startTestGateway()
    const { database, secretKey } = first
    await first.sql`delete from secrets`
    const gateways = await Promise.all([1, 2, 3].map(() => startTestGateway({ database, secretKey })))
    expect(new Set(gateways.map((gateway) => gateway.app.hostPublicKey)).size).toBe(1)
    for (const gateway of gateways) await gateway[Symbol.asyncDispose]()
  })
})

describe('the configuration for OpenSSH', () => {
  it('needs no exception for weak algorithms', async () => {
    await using gateway = await startTestGateway()
    const key = gateway.makeKey('id')
    await gateway.addAccount({ keys: [key] })
    const config = join(gateway.directory, 'config')
    writeFileSync(config, `Host *\n  Port ${gateway.port}\n  IdentityFile ${key}\n  IdentityAgent none\n`)
    const known = join(gateway.directory, 'known_hosts')
    expect(readFileSync(known, 'utf8')).toContain('ssh-ed25519')
    const result = await run('ssh', ['-F', config, '-o', `UserKnownHostsFile=${known}`, 'lobby@127.0.0.1', 'ls'])
    expect(result).toMatchObject({ status: 0, stderr: '' })
  })
})
