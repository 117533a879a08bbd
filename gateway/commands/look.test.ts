import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { Terminal } from '../app.ts'
import { DOCS } from './docs.ts'
import { runLine } from './run.ts'
import { TABLE } from './table.ts'
import { recordingIo, startWorld, type World } from './testing/world.ts'
import { harmless, table, viewOf } from './text.ts'
import { textWidth } from './width.ts'

const PATIENT = { timeout: 60_000, interval: 20 }
const long = `a${'-b'.repeat(19)}`

describe('how the lobby looks', () => {
  let world: World
  beforeAll(async () => {
    world = await startWorld({ sshd: true, env: { BERTH_SSH: '127.0.0.1:0', BERTH_DOMAIN: 'berth.example.com' } })
    await world.run(`new ${long} --memory 1G --tag web --tag ci --comment "${'a long comment '.repeat(20)}"`)
    await world.run('new demo --memory 512M')
    await world.run('new tossed --memory 512M')
    await world.run('rm tossed')
    await world.gateway
      .sql`insert into mails (recipient, subject, body) values ('somebody@example.com', 'A subject', 'A body')`
    await world.run('invite new')
    world.vmhost.failures.set('demo', `${'the disk has no space left, '.repeat(8)}and that is that`)
    await world.run('restart demo')
  })
  afterAll(() => world?.[Symbol.asyncDispose]())

  const onTerminal = async (
    line: string,
    columns: number,
    env: Record<string, string> = {},
    term = 'xterm-256color',
  ) => {
    const terminal: Terminal = { term, columns, rows: 24, onResize: () => () => {} }
    const io = recordingIo({ terminal, env })
    const status = await runLine(world.app, world.owner, line, io)
    expect(io.stderrText(), 'a terminal has one stream').toBe('')
    return { status, raw: io.stdoutText() }
  }
  const plain = (raw: string) => raw.replaceAll(/\x1b\[[0-9;]*[mK]/g, '')

  const lines = [
    ...[
      'help',
      'ls',
      'ls -l',
      'ls --group tag',
      'ls --group host',
      'trash',
      'whoami',
      'ssh-key list',
      'invite ls',
      'audit',
    ],
    ...[
      'doctor',
      'host ls',
      'mail',
      'mail 1',
      'defaults',
      'doc',
      'invite new',
      'nothing',
      'ls tpyo',
      'new Demo',
      'ssh-key',
      'restart demo',
      'stop tpyo demo',
      `stat ${long}`,
      'stat demo --since 2h',
      'logs demo',
      `cp ${long} other --cpu 1 --no-wait`,
      'share add demo somebody.with.a.long.name@example.com',
    ],
    ...[
      'billing plan',
      'billing usage',
      'billing usage --by day',
      'billing rates',
      'billing credits',
      'billing invoices',
      'billing plans',
      'billing limit',
      'billing notices',
      'billing details',
      'billing seller',
      'billing recompute',
      'account ls',
    ],
    ...TABLE.map((command) => `help ${command.name}`),
    ...TABLE.map((command) => `${command.name} --help`),
    ...Object.keys(DOCS).map((topic) => `doc ${topic}`),
  ]

  it.each([80, 120])('nothing is wider than a terminal of %i columns, and nobody shouts', async (columns) => {
    for (const line of lines) {
      const { raw } = await onTerminal(line, columns)
      for (const row of plain(raw).split(/\r\n|\r/)) {
        expect(textWidth(row), `${line}: ${row}`).toBeLessThanOrEqual(columns)
      }
      expect(raw.replaceAll(/'?#!'?/g, ''), line).not.toContain('!')
      expect(raw, line).not.toMatch(/\boops\b|\bsorry\b|undefined|NaN|\[object/i)
      expect(raw.replaceAll('\r\n', ''), `${line}: line feeds come with carriage returns`).not.toContain('\n')
    }
  })

  it('tables fit 40 columns, with the names whole', async () => {
    const { raw } = await onTerminal('ls', 44)
    expect(Math.max(...plain(raw).split('\r\n').map(textWidth))).toBeLessThanOrEqual(44)
    expect(raw).toContain('demo')
  })

  it('colour is on a terminal only, and not where nobody wants it', async () => {
    expect((await onTerminal('ls -l', 80)).raw).toContain('\x1b[')
    expect((await onTerminal('ls -l', 80, { NO_COLOR: '1' })).raw).not.toContain('\x1b[')
    expect((await onTerminal('ls -l', 80, {}, 'dumb')).raw).not.toContain('\x1b')
    expect((await world.run('ls -l')).stdout).not.toContain('\x1b')
  })

  it('a piped list loses nothing', async () => {
    expect((await world.run('ls')).stdout).toContain(long)
  })

  it('--json is one document of every command that asks for nothing', async () => {
    for (const line of [
      'help',
      'ls',
      'trash',
      'whoami',
      'ssh-key list',
      'invite ls',
      'audit',
      'doctor',
      'host ls',
      'mail',
      'defaults',
      'doc',
      'ssh-config',
      'new --help',
      'logs demo',
      'billing plan',
      'billing usage --range 24h',
      'billing rates',
      'billing credits',
      'billing invoices',
      'billing plans',
      'billing notices',
      'billing details',
      'billing recompute',
    ]) {
      const { stdout } = await world.run(`${line} --json`)
      expect(stdout.trimEnd().split('\n'), line).toHaveLength(1)
      expect(JSON.parse(stdout), line).toBeTypeOf('object')
      const { raw } = await onTerminal(`${line} --json`, 80)
      expect(JSON.parse(raw), line).toBeTypeOf('object')
    }
  })

  it('a question on a terminal is answered with the name, or nothing happens', async () => {
    await world.run('new doomed --memory 512M')
    for (const [answer, status] of [
      ['demo\r', 2],
      ['\x03', 1],
      ['doomed\r', 0],
    ] as const) {
      const terminal: Terminal = { term: 'xterm', columns: 80, rows: 24, onResize: () => () => {} }
      const io = recordingIo({ terminal })
      const running = runLine(world.app, world.owner, 'rm --now doomed', io)
      await expect.poll(() => plain(io.stdoutText()), PATIENT).toContain('this cannot be undone; type doomed')
      io.stdin.push(answer)
      expect(await running, answer).toBe(status)
    }
    expect((await world.run('ls doomed')).status).toBe(3)
  })

  it('Ctrl-C during a wait leaves it', async () => {
    world.vmhost.paused = true
    const terminal: Terminal = { term: 'xterm', columns: 80, rows: 24, onResize: () => () => {} }
    const io = recordingIo({ terminal })
    const running = runLine(world.app, world.owner, 'new waited --memory 512M', io)
    await expect.poll(() => io.stdoutText(), PATIENT).toContain('waiting for its server')
    io.stdin.push('\x03')
    expect(await running).toBe(130)
    expect(plain(io.stdoutText())).toMatch(/\^C\r\n[\s\S]*waited goes on being made/)
    world.vmhost.paused = false
  })
})

describe('text', () => {
  it('from a machine cannot drive a terminal', () => {
    const nasty = [
      '\x1b[2J',
      '\x1b]0;title\x07',
      '\x1b]52;c;aGk=\x1b\\',
      '\x9b31m',
      '\x1bP1$r\x1b\\',
      '\x1bc',
      '\x07\b\x7f',
      '\u202e',
      '\r',
    ]
    for (const sequence of nasty) expect(harmless(`a${sequence}b`), JSON.stringify(sequence)).toBe('ab')
    expect(harmless('tab\tand\nline\r\n')).toBe('tab\tand\nline\n')
  })

  it('in a table is cut or left out in the order in which it matters', () => {
    const rows = [{ name: 'quiet-otter', image: 'base', detail: 'x'.repeat(70) }]
    const columns = [
      { title: 'name', value: (row: (typeof rows)[0]) => row.name, flexible: true },
      { title: 'image', value: (row: (typeof rows)[0]) => row.image, optional: 1 },
      { title: 'detail', value: (row: (typeof rows)[0]) => row.detail, flexible: true, optional: 2 },
    ]
    const at = (width: number) =>
      table(rows, columns, viewOf({ term: 'dumb', columns: width, rows: 1, onResize: () => () => {} }, {})).split(
        '\n',
      )[1]
    expect(at(80)).toBe(`quiet-otter  base   ${'x'.repeat(59)}…`)
    expect(at(31)).toBe('quiet-otter  base')
    expect(at(14)).toBe('quiet-otter')
  })
})
