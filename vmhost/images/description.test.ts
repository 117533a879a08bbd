import { expect, test } from 'vitest'
import { environmentsProblem } from '../guest/environment.ts'
import { describe } from './description.ts'
import { type ImageConfig, parseConfig } from './documents.ts'
import { readTar } from './tar-reader.ts'
import { type RawEntry, rawTar } from './testing/layers.ts'
import { applyLayer, type Change, emptyTree } from './tree.ts'

const program = { content: 'elf', mode: 0o755 }
const shell = { path: 'bin/sh', ...program }
const passwd = [
  'root:x:0:0:root:/root:/bin/sh',
  'dev:x:1000:1001::/home/dev:/bin/sh',
  'web:x:33:33::/var/www:/usr/sbin/nologin',
  'lost:x:44:44::/:/bin/zsh',
].join('\n')

async function described(config: Record<string, unknown>, entries: readonly RawEntry[] = [shell], users = passwd) {
  const root = emptyTree()
  const changes: Change[] = []
  const archive = async function* () {
    yield rawTar(entries)
  }
  for await (const { content: _, ...change } of readTar(archive())) changes.push(change)
  applyLayer(root, 0, changes)
  const texts = new Map([
    ['etc/passwd', users],
    ['etc/group', 'root:x:0:\nwww:x:99:\n'],
  ])
  return describe(configOf(config), root, texts)
}

function configOf(config: Record<string, unknown>): ImageConfig {
  const document = { architecture: 'amd64', os: 'linux', rootfs: { type: 'layers', diff_ids: [] }, config }
  return parseConfig(Buffer.from(JSON.stringify(document)), 0, 'image')
}

test.each<[Record<string, unknown>, string]>([
  [{}, 'root'],
  [{ User: 'dev' }, 'dev'],
  [{ User: '1000' }, 'dev'],
  [{ User: 'dev:www' }, 'dev'],
  [{ User: 'web' }, 'root'],
  [{ User: 'lost' }, 'root'],
  [{ User: 'nobody' }, 'root'],
  [{ User: 'dev', Labels: { 'berth.login-user': 'ada' } }, 'ada'],
  [{ Labels: { 'exe.dev/login-user': 'exedev' } }, 'exedev'],
  [{ Labels: { 'berth.login-user': 'no name' } }, 'root'],
])('sessions of an image that says %j are for %s', async (config, loginUser) => {
  expect((await described(config)).loginUser).toBe(loginUser)
})

test.each<[string[], Record<string, string>, number | null]>([
  [[], {}, null],
  [['443/tcp'], {}, null],
  [['8080/tcp', '80/tcp'], {}, 80],
  [['9000', '3000/tcp', '1000/tcp'], {}, 3000],
  [['3000/udp'], {}, null],
  [['99999/tcp', '0/tcp', 'x'], {}, null],
  [['80/tcp'], { 'berth.port': '5000' }, 5000],
  [['80/tcp'], { 'berth.port': '70000' }, 80],
])('the page of an image that exposes %j with labels %j is that of port %j', async (ports, labels, port) => {
  const config = { ExposedPorts: Object.fromEntries(ports.map((text) => [text, {}])), Labels: labels }
  expect((await described(config)).webPort).toBe(port)
})

test.each<[string, RawEntry[], boolean]>([
  ['none', [shell], false],
  [
    'systemd',
    [
      { path: 'lib/systemd/systemd', ...program },
      { path: 'sbin/init', type: '2', linkPath: '/lib/systemd/systemd' },
    ],
    true,
  ],
  [
    'BusyBox alone',
    [
      { path: 'bin/busybox', ...program },
      { path: 'sbin/init', type: '2', linkPath: '../bin/busybox' },
    ],
    false,
  ],
  [
    'BusyBox under two names',
    [
      { path: 'bin/busybox', ...program },
      { path: 'sbin/init', type: '1', linkPath: 'bin/busybox' },
    ],
    false,
  ],
  [
    'OpenRC',
    [
      { path: 'bin/busybox', ...program },
      { path: 'sbin/init', type: '2', linkPath: '/bin/busybox' },
      { path: 'sbin/openrc', ...program },
    ],
    true,
  ],
  ['a link to nothing', [{ path: 'sbin/init', type: '2', linkPath: '/lib/systemd/systemd' }], false],
  ['links in a circle', [{ path: 'sbin/init', type: '2', linkPath: 'init' }], false],
])('the init of an image: %s', async (_, entries, init) => {
  expect((await described({}, entries)).init).toBe(init)
})

test('the program of an image runs as whom and where it says', async () => {
  const command = { Entrypoint: ['/bin/serve'], Cmd: ['--port', '80'], WorkingDir: '/srv' }
  const words = { arguments: ['/bin/serve', '--port', '80'], workingDirectory: '/srv' }
  expect((await described(command)).service).toEqual({ ...words, uid: 0, gid: 0 })
  expect((await described({ ...command, User: 'dev' })).service).toEqual({ ...words, uid: 1000, gid: 1001 })
  expect((await described({ ...command, User: '7:www' })).service).toEqual({ ...words, uid: 7, gid: 99 })
  expect((await described({ ...command, User: 'nobody-there' })).service).toBeNull()
  expect((await described({ ...command, WorkingDir: 'not/absolute' })).service?.workingDirectory).toBe('/')
  expect((await described({ Cmd: ['x'.repeat(100_000)] })).service).toBeNull()
  expect((await described({ Cmd: ['a\0b'] })).service).toBeNull()
  expect((await described({})).service).toBeNull()
})

test('of its variables a machine has those that sessions can be given, the tools last on the path', async () => {
  const many = Array.from({ length: 500 }, (_, n) => `V${n}=${'x'.repeat(400)}`)
  const Env = ['PATH=/app:/bin', 'HOME=/x', 'A=b=c', 'LINE=a\nb', '=x', 'nothing', ...many]
  const { environment } = await described({ Env })
  expect(environment).toMatchObject({ PATH: '/app:/bin:/exe/bin', A: 'b=c', V0: 'x'.repeat(400) })
  expect(Object.keys(environment)).not.toContain('HOME')
  expect(Object.keys(environment)).not.toContain('LINE')
  expect(environmentsProblem(environment)).toBeUndefined()
  expect(Object.keys(environment).length).toBeLessThan(100)
})
