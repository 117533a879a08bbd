import { execFileSync } from 'node:child_process'
import { lstatSync, mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { readTar } from './tar-reader.ts'
import { ending, headerOf, linkHeader, padding, planTree, storedBytes } from './tar-writer.ts'
import { gnuTar, type RawEntry, rawTar } from './testing/layers.ts'
import { applyLayer, type Change, type DirectoryNode, emptyTree, find } from './tree.ts'

/** Layers applied, written as one archive, and unpacked by the tar that servers use. */

let folder: string
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'berth-tree-'))
})
afterEach(() => rmSync(folder, { recursive: true }))

type Layer = readonly RawEntry[] | Buffer

async function merge(layers: readonly Layer[]) {
  const root = emptyTree()
  const contents: Buffer[][] = []
  for (const [number, layer] of layers.entries()) {
    const changes: Change[] = []
    const texts: Buffer[] = []
    const archive = Buffer.isBuffer(layer) ? layer : rawTar(layer)
    for await (const { content, ...change } of readTar(
      (async function* () {
        yield archive
      })(),
    )) {
      const parts: Buffer[] = []
      for await (const part of content()) parts.push(part)
      texts.push(Buffer.concat(parts))
      changes.push(change)
    }
    contents.push(texts)
    applyLayer(root, number, changes)
  }
  return { root, contents }
}

async function unpack(...layers: readonly Layer[]): Promise<DirectoryNode> {
  const { root, contents } = await merge(layers)
  const plan = planTree(root)
  const parts = plan.first.map(headerOf)
  for (const [number, files] of plan.files)
    for (const [index, placed] of files) {
      const bytes = contents[number]?.[index] ?? Buffer.alloc(0)
      expect(bytes.length).toBe(storedBytes(placed.node))
      parts.push(headerOf(placed), bytes, padding(bytes.length))
    }
  const archive = Buffer.concat([...parts, ...plan.links.map(linkHeader), ending()])
  const options = [
    '--numeric-owner',
    '--same-owner',
    '--preserve-permissions',
    '--xattrs',
    '--xattrs-include=*',
    '--delay-directory-restore',
  ]
  execFileSync('tar', ['-x', '-f', '-', '-C', folder, ...options], {
    input: archive,
    env: { PATH: process.env.PATH, LC_ALL: 'C.UTF-8' },
  })
  return root
}

/** Paths of what is there, and what is in it. */
function seen(at = folder, prefix = ''): Record<string, string> {
  const found: Record<string, string> = {}
  for (const name of readdirSync(at, 'latin1').sort()) {
    const path = Buffer.from(`${at}/${name}`, 'latin1')
    const stat = lstatSync(path)
    if (stat.isDirectory())
      Object.assign(found, { [`${prefix}${name}/`]: '' }, seen(`${at}/${name}`, `${prefix}${name}/`))
    else if (stat.isSymbolicLink()) found[prefix + name] = `-> ${readlinkSync(path)}`
    else found[prefix + name] = stat.isFile() ? readFileSync(path, 'utf8') : 'special'
  }
  return found
}

test('a layer adds, replaces and takes away', async () => {
  await unpack(
    [
      { path: 'etc/', type: '5' },
      { path: 'etc/a', content: 'a' },
      { path: 'etc/b', content: 'b' },
      { path: 'opt/old/deep/x', content: 'x' },
      { path: 'opt/kind', type: '5' },
    ],
    [
      { path: './etc/a', content: 'A' },
      { path: 'etc/.wh.b' },
      { path: 'etc/c', content: 'c' },
      { path: 'opt/.wh.old' },
      { path: 'opt/kind', content: 'a file now' },
      { path: 'nowhere/.wh.nothing' },
    ],
  )
  expect(seen()).toEqual({ 'etc/': '', 'etc/a': 'A', 'etc/c': 'c', 'opt/': '', 'opt/kind': 'a file now' })
})

test('an opaque directory hides what is below it, and nothing of its own layer, wherever its mark stands', async () => {
  await unpack(
    [
      { path: 'd/old', content: 'o' },
      { path: 'd/sub/older', content: 'o' },
      { path: 'e/kept', content: 'k' },
    ],
    [{ path: 'd/new', content: 'n' }, { path: 'd/.wh..wh..opq' }, { path: 'e/.wh..wh.plnk', content: '' }],
    [{ path: 'd/sub/', type: '5' }],
  )
  expect(seen()).toEqual({ 'd/': '', 'd/new': 'n', 'd/sub/': '', 'e/': '', 'e/kept': 'k' })
})

test('a whiteout takes away what was below, and not what its own layer brings under that name', async () => {
  await unpack([{ path: 'f', content: 'old' }], [{ path: 'f', content: 'new' }, { path: '.wh.f' }])
  expect(seen()).toEqual({ f: 'new' })
})

test('paths go over the links that are there, and a directory in a link’s place replaces it', async () => {
  await unpack(
    [
      { path: 'usr/lib/a', content: 'a' },
      { path: 'lib', type: '2', linkPath: 'usr/lib' },
      { path: 'x', type: '2', linkPath: '/usr' },
    ],
    [{ path: 'lib/b', content: 'b' }, { path: 'lib/.wh.a' }, { path: 'x/', type: '5' }, { path: 'x/y', content: 'y' }],
  )
  expect(seen()).toEqual({ lib: '-> usr/lib', 'usr/': '', 'usr/lib/': '', 'usr/lib/b': 'b', 'x/': '', 'x/y': 'y' })
})

test('hard links stay links over layers, and end where one of their names is replaced', async () => {
  await unpack(
    [
      { path: 'bin/a', content: 'same', mode: 0o755 },
      { path: 'bin/b', type: '1', linkPath: 'bin/a' },
      { path: 'bin/c', type: '1', linkPath: '/bin/a' },
    ],
    [{ path: 'bin/d', type: '1', linkPath: './bin/b' }, { path: 'bin/.wh.a' }, { path: 'bin/c', content: 'other' }],
  )
  expect(seen()).toEqual({ 'bin/': '', 'bin/b': 'same', 'bin/c': 'other', 'bin/d': 'same' })
  expect(lstatSync(join(folder, 'bin/b')).ino).toBe(lstatSync(join(folder, 'bin/d')).ino)
  expect(lstatSync(join(folder, 'bin/b')).nlink).toBe(2)
})

test('owners, modes, times, attributes, devices, holes and names arrive as they are', async () => {
  const capability = Buffer.from([1, 0, 0, 2, 0x80, 0x20, 0, 0, 0, 0, 0, 0, 0xff, 0, 0, 0, 0, 0, 0, 0])
  const long = `${'directory-'.repeat(12)}/${'file-'.repeat(30)}`
  const layer = gnuTar(
    `mkdir -p ${'directory-'.repeat(12)}; echo far > ${long}; truncate -s 30M holes; echo end >> holes; echo x > "$(printf '\\344')"; chmod 0 ${'directory-'.repeat(12)}; touch -d @1500000000 holes ${'directory-'.repeat(12)}`,
    ['--sparse', '--format=pax', '--sparse-version=1.0'],
  )
  await unpack(layer, [
    {
      path: 'ping',
      content: 'p',
      mode: 0o4755,
      uid: 4_000_000,
      gid: 12,
      modifiedAt: 1_600_000_000,
      records: {
        'SCHILY.xattr.security.capability': capability,
        'SCHILY.xattr.user.note': 'a=b',
        'SCHILY.xattr.trusted.overlay.opaque': 'y',
        mtime: '1600000000.5',
        uid: '3000000000',
      },
    },
    { path: 'dev/null', type: '3', device: [1, 3], mode: 0o666 },
    { path: 'pipe', type: '6' },
    { path: '.', type: '5', mode: 0o711, uid: 5 },
  ])
  const ping = lstatSync(join(folder, 'ping'))
  expect([ping.mode & 0o7777, ping.uid, ping.gid, ping.mtimeMs]).toEqual([0o4755, 3_000_000_000, 12, 1_600_000_000_500])
  const attributes = execFileSync('getfattr', ['-d', '-m', '-', '-e', 'hex', join(folder, 'ping')], {
    encoding: 'utf8',
  })
  expect(attributes).toContain(`security.capability=0x${capability.toString('hex')}`)
  expect(attributes).toContain(`user.note=0x${Buffer.from('a=b').toString('hex')}`)
  expect(attributes).not.toContain('trusted')
  expect(lstatSync(join(folder, 'dev/null')).rdev).toBe(0x103)
  expect(lstatSync(join(folder, 'pipe')).isFIFO()).toBe(true)
  const holes = lstatSync(join(folder, 'holes'))
  expect([holes.size, holes.blocks * 512 < 2 ** 20, holes.mtimeMs]).toEqual([30 * 2 ** 20 + 4, true, 1_500_000_000_000])
  const directory = lstatSync(join(folder, 'directory-'.repeat(12)))
  expect([directory.mode & 0o7777, directory.mtimeMs]).toEqual([0, 1_500_000_000_000])
  expect(readFileSync(join(folder, long), 'utf8')).toBe('far\n')
  expect(Object.keys(seen())).toContain('\xe4')
})

test('no layer writes, links or takes away outside of its tree', async () => {
  const outside = mkdtempSync(join(tmpdir(), 'berth-outside-'))
  try {
    execFileSync('sh', ['-c', 'echo mine > "$1/mine"', 'sh', outside])
    await unpack(
      [
        { path: 'abs', type: '2', linkPath: outside },
        { path: 'up', type: '2', linkPath: '../../../../../../..' },
        { path: 'abs/planted', content: 'x' },
        { path: 'up/tmp/planted', content: 'x' },
        { path: `${outside}/planted`, content: 'x' },
        // A link that becomes a directory, and back, between its uses.
        { path: 'flip', type: '2', linkPath: outside },
        { path: 'flip/', type: '5' },
        { path: 'flip/mine', content: 'x' },
        { path: 'flip', type: '2', linkPath: outside },
        { path: 'flip/other', content: 'x' },
      ],
      [
        { path: `abs/.wh.mine` },
        { path: 'abs/.wh..wh..opq' },
        { path: 'abs/mine', type: '2', linkPath: '/etc/passwd' },
        { path: 'abs/mine', content: 'through' },
      ],
    )
    expect(readdirSync(outside)).toEqual(['mine'])
    expect(readFileSync(join(outside, 'mine'), 'utf8')).toBe('mine\n')
    // It all went to places of those names inside.
    const inside = seen()
    expect(inside[`${outside.slice(1)}/mine`]).toBe('through')
    expect(inside['tmp/planted']).toBe('x')
    expect(inside[`${outside.slice(1)}/other`]).toBeUndefined()
  } finally {
    rmSync(outside, { recursive: true })
  }
})

test.each<[string, Layer[], RegExp]>([
  ['a path that leads out', [[{ path: '../x' }]], /leads out of it/],
  ['a path that leads out in the middle', [[{ path: 'a/../../x' }]], /leads out of it/],
  ['a whiteout that leads out', [[{ path: '../.wh.x' }]], /leads out of it/],
  ['a hard link that leads out', [[{ path: 'x', type: '1', linkPath: '../../etc/shadow' }]], /leads out of it/],
  ['a hard link to what only the server has', [[{ path: 'x', type: '1', linkPath: '/etc/shadow' }]], /not there/],
  [
    'a hard link over a link to what only the server has',
    [
      [
        { path: 'e', type: '2', linkPath: '/etc' },
        { path: 'x', type: '1', linkPath: 'e/shadow' },
      ],
    ],
    /not there/,
  ],
  [
    'a hard link to a directory',
    [
      [
        { path: 'd/', type: '5' },
        { path: 'x', type: '1', linkPath: 'd' },
      ],
    ],
    /to a directory/,
  ],
  [
    'links in a circle',
    [[{ path: 'a', type: '2', linkPath: 'b' }, { path: 'b', type: '2', linkPath: 'a' }, { path: 'a/x' }]],
    /circle/,
  ],
  ['a name that no disk takes', [[{ path: 'x', records: { path: 'n'.repeat(300) } }]], /too long/],
  ['a path that no disk takes', [[{ path: 'x', records: { path: 'n/'.repeat(3000) } }]], /too long/],
  ['a path with a zero in it', [[{ path: 'x', records: { path: 'a\0b' } }]], /too long/],
  [
    'attributes that no disk takes',
    [[{ path: 'x', records: { 'SCHILY.xattr.user.a': 'v'.repeat(4000) } }]],
    /attributes/,
  ],
  ['an owner of nobody’s', [[{ path: 'x', records: { uid: '4294967295' } }]], /owner/],
])('%s is refused in a sentence', async (_, layers, sentence) => {
  await expect(merge(layers)).rejects.toThrow(sentence)
})

test('links that lead through each other are bounded in what they cost', async () => {
  const doubling = Array.from({ length: 60 }, (_, n) => ({ path: `l${n + 1}`, type: '2', linkPath: `l${n}/../l${n}` }))
  const { root } = await merge([[{ path: 'l0', type: '5' }, ...doubling]])
  expect(find(root, '/l60')).toBeUndefined()
  expect(find(root, '/l5')).toBe(root.children.get('l0'))
})
