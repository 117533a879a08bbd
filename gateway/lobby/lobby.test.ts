import { execFile, execFileSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { promisify } from 'node:util'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { openTerminal, type Terminal } from '../../test/e2e/terminal.ts'
import { startWorld, type World } from '../commands/testing/world.ts'
import { runLobby } from './lobby.ts'

const run = promisify(execFile)
const PATIENT = { timeout: 60_000, interval: 50 }

describe('the lobby on a real terminal, with the real client', () => {
  let world: World
  const open: Terminal[] = []
  /** widths that lobbies have heard of */
  const widths: number[] = []
  beforeAll(async () => {
    const lobby: typeof runLobby = (app, caller, io, notice) => {
      io.terminal.onResize(() => widths.push(io.terminal.columns))
      return runLobby(app, caller, io, notice)
    }
    world = await startWorld({ sshd: true, runLobby: lobby })
  })
  afterAll(async () => {
    for (const terminal of open) terminal.kill()
    await world?.[Symbol.asyncDispose]()
  })
  const visit = (parameters: string[] = []) => {
    const terminal = openTerminal(
      'ssh',
      [...world.gateway.sshOptions(world.key), '-t', 'lobby@127.0.0.1', ...parameters],
      {
        cwd: world.gateway.directory,
        home: world.gateway.directory,
        columns: 80,
      },
    )
    open.push(terminal)
    return terminal
  }

  it('tells a first visitor the one thing to type, and it works', async () => {
    const lobby = visit()
    await lobby.expect(/You have no machine yet; type .*new.* and press Enter/)
    await lobby.expect(/berth.*> ?$/)
    lobby.type('new demo --memory 512M\r')
    await lobby.expect(/demo.* is ready after [\d.]+ s: .*ssh -p \d+ demo@localhost/)
    lobby.type('ls --gr\tst\t\r')
    await lobby.expect(/ls --group=status[\s\S]*running/)
    lobby.type('ssh de\t\r')
    await lobby.expect(/[#$] $/)
    lobby.type('stty size; tty\r')
    await lobby.expect(/30 80[\s\S]*\/dev\/pts/)
    lobby.resize(60, 20)
    // The window's new size reaches the machine on its own time.
    for (let n = 0; n < 40; n++) {
      lobby.type('stty size\r')
      if (/20 60/.test(await lobby.expect(/\d+ \d+\r\n/))) break
    }
    // Said by the child itself: it has the terminal then, and a Ctrl-C is its own and not the shell's.
    lobby.type('sh -c "echo $((6*7)) sleeps; exec sleep 600"\r')
    await lobby.expect(/42 sleeps/)
    lobby.type('\x03')
    await lobby.expect(/\^C/)
    lobby.type('exit 7\r')
    await lobby.expect(/berth.*> ?$/)
    lobby.type('\x04')
    expect(await lobby.ended).toBe(7)
  }, 120_000)

  it('remembers the lines of the last visit, and runs those of a paste one after the other', async () => {
    const lobby = visit()
    await lobby.expect(/berth.*> ?$/)
    lobby.type('\x1b[A\x1b[A\x1b[A')
    await lobby.expect(/new demo --memory 512M/)
    lobby.type('\x03')
    await lobby.expect(/berth.*> ?$/)
    lobby.type('\x1b[200~whoami\nls demo\n\x1b[201~\r')
    await lobby.expect(/SHA256:[\s\S]*always/)
    lobby.type('exit\r')
    expect(await lobby.ended).toBe(0)
  })

  it('takes one command with a terminal too, and Ctrl-C there', async () => {
    const once = visit(['logs', 'demo', '-f'])
    const [machine] = await world.gateway.sql<{ id: number }[]>`select id from machines where name = 'demo'`
    await world.gateway
      .sql`insert into console_chunks (machine_id, seq, boot, bytes) values (${machine?.id ?? 0}, 1, 1, ${Buffer.from('hello\n')})`
    await once.expect(/hello/)
    once.type('\x03')
    await once.expect(/\^C/)
    expect(await once.ended).toBe(130)
  })

  it('runs a script from stdin, a command a line, with the last one’s status', async () => {
    const ran = await world.gateway.ssh({ key: world.key, input: 'ls --json\nstop tpyo\nwhoami --json\n' })
    expect(ran.status).toBe(0)
    expect(
      ran.stdout
        .trimEnd()
        .split('\n')
        .map((line) => Object.keys(JSON.parse(line))),
    ).toMatchObject([['vms'], expect.arrayContaining(['fingerprint'])])
    expect(ran.stderr).toContain('no machine called tpyo')
    expect((await world.gateway.ssh({ key: world.key, input: 'ls --json\nstop tpyo\n' })).status).toBe(3)
  })

  it('keeps the screen right while the window changes, as tmux shows it', async () => {
    const server = `berth-${randomBytes(4).toString('hex')}`
    const tmux = (...args: string[]) =>
      run('tmux', ['-L', server, '-f', '/dev/null', ...args]).then(({ stdout }) => stdout)
    const client = ['ssh', ...world.gateway.sshOptions(world.key), '-t', 'lobby@127.0.0.1']
      .map((word) => `'${word}'`)
      .join(' ')
    await tmux('new-session', '-d', '-s', 'a', '-x', '60', '-y', '24', client)
    try {
      const screen = async () => (await tmux('capture-pane', '-p', '-t', 'a')).trimEnd()
      await expect.poll(screen, PATIENT).toMatch(/berth>$/)
      // A full screen: tmux takes the empty rows of a new one for text, and moves what is above them away.
      await tmux('send-keys', '-t', 'a', 'help', 'Enter')
      await expect.poll(screen, PATIENT).toMatch(/--json\.\nberth>$/)
      // No width below divides it: a cursor behind a full row is where terminals differ.
      const long = "comment demo '漢字 and é, a text that is long enough to be wrapped at every width that people have'"
      await tmux('send-keys', '-t', 'a', '-l', long)
      const shown = async () => (await screen()).replaceAll('\n', '').split('berth> ').at(-1)?.replaceAll(' ', '')
      await expect.poll(shown, PATIENT).toBe(long.replaceAll(' ', ''))
      for (const width of ['100', '37', '21', '80']) {
        await tmux('resize-window', '-t', 'a', '-x', width, '-y', '24')
        await expect.poll(() => widths.at(-1), PATIENT).toBe(Number(width))
        await tmux('send-keys', '-t', 'a', 'C-a')
        await tmux('send-keys', '-t', 'a', 'C-e')
        await expect.poll(shown, PATIENT).toBe(long.replaceAll(' ', ''))
        // Exactly one prompt line of it: nothing of an earlier drawing is left.
        expect((await screen()).match(/comment demo/g), `at ${width} columns:\n${await screen()}`).toHaveLength(1)
      }
      await tmux('send-keys', '-t', 'a', 'C-u')
      await expect.poll(screen, PATIENT).toMatch(/berth>$/)
    } finally {
      execFileSync('tmux', ['-L', server, 'kill-server'])
    }
  }, 120_000)
})
