import type { AddressInfo } from 'node:net'
import { SMTPServer } from 'smtp-server'
import { describe, expect, it } from 'vitest'
import { openTerminal, type Terminal } from '../../test/e2e/terminal.ts'
import { startTestGateway, type TestGateway } from '../../test/gateway.ts'
import { createInvitation } from '../accounts/invitations.ts'
import { runLine } from '../commands/run.ts'
import { startWorld } from '../commands/testing/world.ts'
import { runLobby } from '../lobby/lobby.ts'

/** `ssh user@gateway` on a real terminal. */
function visit(gateway: TestGateway, key: string, user = 'alice', command: string[] = []): Terminal {
  const args = [...gateway.sshOptions(key), ...(command.length ? ['-t'] : []), `${user}@127.0.0.1`, ...command]
  return openTerminal('ssh', args, { cwd: gateway.directory, home: gateway.directory })
}

/** Keeps the mails that it is sent; refuses the first `refusals` of them. */
async function startMailServer(refusals = 0) {
  const mails: string[] = []
  let refused = 0
  const server = new SMTPServer({
    authOptional: true,
    disabledCommands: ['STARTTLS', 'AUTH'],
    onData(stream, _session, done) {
      let mail = ''
      stream.on('data', (chunk: Buffer) => {
        mail += chunk
      })
      stream.on('end', () => {
        if (refused++ < refusals) return done(Object.assign(new Error('busy'), { responseCode: 451 }))
        mails.push(mail)
        done()
      })
    },
  })
  server.on('error', () => {})
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', () => resolve()))
  return {
    mails,
    url: `smtp://127.0.0.1:${(server.server.address() as AddressInfo).port}`,
    [Symbol.asyncDispose]: () => new Promise<void>((resolve) => server.close(() => resolve())),
  }
}

const people = (gateway: TestGateway) =>
  gateway.sql`select email, is_owner, (select count(*)::int from keys where account_id = a.id) as keys from accounts a order by id`

describe('signing up on a terminal', () => {
  it('makes the first visitor with the printed join code the owner, and goes on to the lobby', async () => {
    await using gateway = await startTestGateway()
    const key = gateway.makeKey('id')
    const ssh = visit(gateway, key)
    await ssh.expect('This is Berth at localhost.')
    await ssh.expect('Nobody owns this installation yet. Paste the join code that its start printed.')
    await ssh.expect('Join code: ')
    ssh.type(`${gateway.joinCode?.toUpperCase().replaceAll('-', ' ')}\r`)
    await ssh.expect('E-mail address (Enter for none): ')
    ssh.type('\r')
    await ssh.expect('Welcome. This installation is yours.')
    await ssh.expect('lobby of 1 on xterm-256color')
    ssh.type('exit\r')
    expect(await ssh.ended).toBe(0)
    expect(await people(gateway)).toEqual([{ email: null, is_owner: true, keys: 1 }])
    expect(await gateway.sql`select name from lobby_names`).toEqual([{ name: 'alice' }])
    expect((await gateway.ssh({ key, user: 'alice', command: ['ls'] })).stdout).toBe('lobby of 1: ls\n')
    const events = await gateway.sql`select kind, account_id, address, via from events order by id`
    expect(events).toEqual([
      { kind: 'account.created', account_id: 1, address: '127.0.0.1', via: 'ssh' },
      { kind: 'account.name_learned', account_id: 1, address: null, via: null },
    ])
  })

  it('takes a first join code once, and offers it to nobody when there is an owner', async () => {
    await using gateway = await startTestGateway()
    await gateway.addAccount({ owner: true })
    const ssh = visit(gateway, gateway.makeKey('id'))
    await ssh.expect('To make one, paste the join code that somebody sent you.')
    await ssh.expect('Join code: ')
    ssh.type(`${gateway.joinCode}\r`)
    await ssh.expect('E-mail address')
    ssh.type('\r')
    await ssh.expect('That join code is not known, used up or too old.')
    expect(await ssh.ended).toBe(4)
    expect(await people(gateway)).toHaveLength(1)
  })

  it('takes an invitation as often as it says, whoever types it at the same moment', async () => {
    await using gateway = await startTestGateway()
    const owner = await gateway.addAccount({ owner: true })
    const { code } = await createInvitation(gateway.sql, { accountId: owner, uses: 2 })
    const visits = [1, 2, 3].map((n) => visit(gateway, gateway.makeKey(`id${n}`), `person${n}`))
    await Promise.all(
      visits.map(async (ssh) => {
        await ssh.expect('Join code: ')
        ssh.type(`${code}\r`)
        await ssh.expect('E-mail address')
      }),
    )
    for (const ssh of visits) ssh.type('\r')
    const outcomes = await Promise.all(
      visits.map(async (ssh) => {
        const outcome = await ssh.expect(/Welcome|That join code is not known/)
        ssh.type('exit\r')
        return outcome
      }),
    )
    expect(outcomes.filter((outcome) => outcome === 'Welcome')).toHaveLength(2)
    expect(await people(gateway)).toHaveLength(3)
    for (const ssh of visits) ssh.kill()
  })

  it('refuses wrong codes, five of them, makes nothing, and slows the address down', async () => {
    await using gateway = await startTestGateway({ limits: { connectionBurst: 100, connectionsPerSecond: 0.001 } })
    await gateway.addAccount({ owner: true })
    const ssh = visit(gateway, gateway.makeKey('id'))
    for (let n = 0; n < 5; n++) {
      await ssh.expect('Join code: ')
      ssh.type('0000-0000-0000-0000\r')
      await ssh.expect('That join code is not known, used up or too old.')
    }
    await ssh.expect('Ask for another one, and connect again.')
    expect(await ssh.ended).toBe(4)
    expect(await people(gateway)).toHaveLength(1)
    const refused = await gateway.ssh({ command: ['ls'] })
    expect(refused.status).toBe(255)
    expect(refused.stderr).toContain('Berth: too many connections from your address; try again in')
  })

  it.each([
    ['Ctrl-C', '\x03'],
    ['Ctrl-D', '\x04'],
  ])('can be left with %s, and nothing was made', async (_name, character) => {
    await using gateway = await startTestGateway()
    const ssh = visit(gateway, gateway.makeKey('id'))
    await ssh.expect('Join code: ')
    ssh.type(character)
    await ssh.expect('Nothing was made. Connect again whenever you like.')
    expect(await ssh.ended).toBe(4)
    expect(await people(gateway)).toEqual([])
  })

  it('ends by itself when nobody answers, says so, and made nothing', async () => {
    await using gateway = await startTestGateway({ limits: { signUpDialogMs: 1000 } })
    const key = gateway.makeKey('id')
    const ssh = visit(gateway, key)
    await ssh.expect('Join code: ')
    ssh.type(`${gateway.joinCode}\r`)
    await ssh.expect(/This sign-up was open for 1(\.0)? s and ends now/)
    await ssh.expect('Nothing was made. Connect again whenever you like.')
    expect(await ssh.ended).toBe(4)
    expect(await people(gateway)).toEqual([])
    const again = visit(gateway, key)
    await again.expect('Join code: ')
    again.kill()
  })

  it('asks for no code where sign-up is open, once somebody owns the installation', async () => {
    await using gateway = await startTestGateway({ env: { BERTH_SIGNUP: 'open' } })
    const early = visit(gateway, gateway.makeKey('early'))
    await early.expect('Join code: ')
    early.kill()
    await gateway.addAccount({ owner: true })
    const ssh = visit(gateway, gateway.makeKey('id'))
    await ssh.expect('E-mail address (Enter for none): ')
    ssh.type('not an address\r')
    await ssh.expect('That is not an address; expected one such as you@example.com.')
    ssh.type('Alice@Example.com\r')
    await ssh.expect('Welcome. You have an account.')
    ssh.kill()
    expect(await people(gateway)).toMatchObject([{ is_owner: true }, { email: 'alice@example.com', is_owner: false }])
  })

  it('asks for nothing where sign-up is closed', async () => {
    await using gateway = await startTestGateway({ env: { BERTH_SIGNUP: 'closed' } })
    await gateway.addAccount({ owner: true })
    const ssh = visit(gateway, gateway.makeKey('id'))
    await ssh.expect('Sign-up is closed.')
    expect(await ssh.ended).toBe(4)
  })

  it('asks on the terminal of a command too, and then runs it', async () => {
    await using gateway = await startTestGateway()
    const ssh = visit(gateway, gateway.makeKey('id'), 'alice', ['ls'])
    await ssh.expect('Join code: ')
    ssh.type(`${gateway.joinCode}\r`)
    await ssh.expect('E-mail address')
    ssh.type('\r')
    await ssh.expect('lobby of 1: ls')
    expect(await ssh.ended).toBe(0)
  })
})

describe('the real lobby', () => {
  it('hears what is typed after a sign-up on the same terminal', async () => {
    await using gateway = await startTestGateway({ lobby: { runLine, runLobby } })
    const ssh = visit(gateway, gateway.makeKey('id'))
    await ssh.expect('Join code: ')
    ssh.type(`${gateway.joinCode}\r`)
    await ssh.expect('E-mail address')
    ssh.type('\r')
    await ssh.expect(/berth\S*> /)
    ssh.type('whoami\r')
    await ssh.expect('SHA256:')
    await ssh.expect(/berth\S*> /)
    ssh.type('exit\r')
    expect(await ssh.ended).toBe(0)
  })

  it('runs the command that asked for the sign-up', async () => {
    await using gateway = await startTestGateway({ lobby: { runLine, runLobby } })
    const ssh = visit(gateway, gateway.makeKey('id'), 'alice', ['whoami'])
    await ssh.expect('Join code: ')
    ssh.type(`${gateway.joinCode}\r`)
    await ssh.expect('E-mail address')
    ssh.type('\r')
    await ssh.expect('Welcome')
    await ssh.expect('SHA256:')
    expect(await ssh.ended).toBe(0)
  })
})

describe('proving an address', () => {
  it('mails a code, refuses wrong ones, and sends it again after the mail server was busy', async () => {
    await using mail = await startMailServer(1)
    await using gateway = await startTestGateway({ env: { BERTH_SMTP: mail.url }, mailRetrySeconds: [0.2, 0.2] })
    const ssh = visit(gateway, gateway.makeKey('id'))
    await ssh.expect('Join code: ')
    ssh.type(`${gateway.joinCode}\r`)
    await ssh.expect('E-mail address: ')
    ssh.type('\r')
    await ssh.expect('That is not an address')
    ssh.type('alice@example.com\r')
    await ssh.expect('A code is on its way to alice@example.com.')
    await expect.poll(() => mail.mails.length, { timeout: 60_000 }).toBe(1)
    const [, code = ''] = /The code is (\d{6})\./.exec(mail.mails[0] ?? '') ?? []
    expect(mail.mails[0]).toContain('To: alice@example.com')
    ssh.type(`${code === '000000' ? '000001' : '000000'}\r`)
    await ssh.expect('That is not the code.')
    ssh.type(`${code}\r`)
    await ssh.expect('Welcome. This installation is yours.')
    ssh.kill()
    expect(await people(gateway)).toMatchObject([{ email: 'alice@example.com', is_owner: true }])
    const [proved] = await gateway.sql`select email_proved_at from accounts`
    expect(proved?.email_proved_at).toBeInstanceOf(Date)
    await expect
      .poll(() => gateway.sql`select body, sent_at is not null as sent, attempts from mails`)
      .toEqual([{ body: '', sent: true, attempts: 2 }])
    const [kept] = await gateway.sql<{ code_hash: Buffer }[]>`select code_hash from email_codes`
    expect(kept?.code_hash.toString('hex')).not.toContain(Buffer.from(code).toString('hex'))
  })

  it('does not take somebody else’s address', async () => {
    await using gateway = await startTestGateway()
    const owner = await gateway.addAccount({ owner: true })
    await gateway.sql`update accounts set email = 'taken@example.com' where id = ${owner}`
    const { code } = await createInvitation(gateway.sql, { accountId: owner })
    const ssh = visit(gateway, gateway.makeKey('id'))
    await ssh.expect('Join code: ')
    ssh.type(`${code}\r`)
    await ssh.expect('E-mail address')
    ssh.type('Taken@example.com\r')
    await ssh.expect('That address belongs to another account.')
    await ssh.expect('E-mail address')
    ssh.type('\r')
    await ssh.expect('Welcome. You have an account.')
    ssh.kill()
  })
})

describe('the names that people type without thinking', () => {
  const real = { lobby: { runLine, runLobby } }
  /** `ssh user@gateway` on a terminal: types the lines and leaves. */
  async function use(gateway: TestGateway, key: string, user: string, lines: string[]): Promise<string> {
    const ssh = visit(gateway, key, user)
    for (const line of [...lines, 'exit']) {
      await ssh.expect(/berth\S*> $/)
      ssh.type(`${line}\r`)
    }
    await ssh.ended
    return ssh.output().replace(/\s+/g, ' ')
  }
  const notice = (name: string) =>
    `no machine called ${name}; this is the lobby. To reach a machine: ssh NAME@localhost`

  it('are recorded where somebody used the lobby by them on a terminal, and by nothing else', async () => {
    await using gateway = await startTestGateway(real)
    const key = gateway.makeKey('id')
    await gateway.addAccount({ keys: [key] })
    expect((await gateway.ssh({ key, user: 'bob', command: ['ls'] })).status).toBe(3)
    expect(await use(gateway, key, 'bob', ['ls'])).toContain(notice('bob'))
    expect((await gateway.ssh({ key, user: 'bob', command: ['ls'] })).status).toBe(0)
    expect(await use(gateway, key, 'bob', [])).not.toContain('no machine called')
  })

  it('are not learned from a visit that ends at the notice, nor from one where no command was understood', async () => {
    await using gateway = await startTestGateway(real)
    const key = gateway.makeKey('id')
    await gateway.addAccount({ keys: [key] })
    expect(await use(gateway, key, 'tpyo', [])).toContain(notice('tpyo'))
    expect(await use(gateway, key, 'tpyo', ['cd src'])).toContain(notice('tpyo'))
    expect(await gateway.ssh({ key, user: 'tpyo', command: ['ls'] })).toMatchObject({
      status: 3,
      stdout: '',
      stderr: 'no machine called tpyo; the lobby is lobby@localhost\n',
    })
    const command = visit(gateway, key, 'tpyo', ['ls'])
    await command.expect('no machine called tpyo; the lobby is lobby@localhost')
    expect(await command.ended).toBe(3)
    expect(await gateway.sql`select name from lobby_names`).toEqual([])
  })

  it('are no slips for a machine, whatever was done in the lobby then', async () => {
    await using gateway = await startTestGateway(real)
    const key = gateway.makeKey('id')
    const account = await gateway.addAccount({ keys: [key] })
    await gateway.addMachine(account, 'website')
    await gateway.addMachine(account, 'oldie', { state: 'trashed' })
    for (const slip of ['webstie', 'website2', 'oldie']) {
      expect(await use(gateway, key, slip, ['ls'])).toContain(notice(slip))
      expect((await gateway.ssh({ key, user: slip, command: ['rm', 'website'] })).status, slip).toBe(3)
    }
    expect(await gateway.sql`select name from lobby_names`).toEqual([])
  })

  it('leave the name to a machine that is made in the visit', async () => {
    await using world = await startWorld()
    const { gateway, key } = world
    const output = await use(gateway, key, 'demo', ['ls', 'new demo --memory 512M --no-wait'])
    expect(output).toContain(notice('demo'))
    expect(output).toContain('demo is being made')
    expect(await gateway.sql`select name from machine_names`).toEqual([{ name: 'demo' }])
    expect(await gateway.sql`select name from lobby_names`).toEqual([])
  })

  it('do not lead a new account to the lobby by the name of somebody’s machine', async () => {
    await using gateway = await startTestGateway({ ...real, env: { BERTH_SIGNUP: 'open' } })
    await gateway.addMachine(await gateway.addAccount({ owner: true }), 'theirs')
    const ssh = visit(gateway, gateway.makeKey('id'), 'theirs', ['whoami'])
    await ssh.expect('E-mail address')
    ssh.type('\r')
    await ssh.expect('Welcome. You have an account.')
    await ssh.expect('no machine called theirs; the lobby is lobby@localhost')
    expect(await ssh.ended).toBe(3)
  })
})
