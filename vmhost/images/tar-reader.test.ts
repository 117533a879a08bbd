import { expect, test } from 'vitest'
import { readTar, type TarEntry } from './tar-reader.ts'
import { gnuTar, rawEntry, rawHeader, rawTar } from './testing/layers.ts'

type Read = Omit<TarEntry, 'content'> & { text: string }

/** @param pieceBytes how the archive arrives */
async function read(archive: Buffer, pieceBytes = 1000): Promise<Read[]> {
  const found: Read[] = []
  const source = async function* () {
    for (let at = 0; at < archive.length; at += pieceBytes) yield archive.subarray(at, at + pieceBytes)
  }
  for await (const { content, ...entry } of readTar(source())) {
    const parts: Buffer[] = []
    for await (const part of content()) parts.push(part)
    found.push({ ...entry, text: Buffer.concat(parts).toString('latin1') })
  }
  return found
}

const folder = `
mkdir -p d/${'long-'.repeat(18)}/${'name-'.repeat(19)}
echo hello > d/file
echo deep > d/${'long-'.repeat(18)}/${'name-'.repeat(19)}/x
ln d/file d/hard
ln -s ${'target/'.repeat(20)} d/symbolic
mkfifo d/fifo
mknod d/null c 1 3
printf '\\303\\244' > "d/$(printf '\\377latin')"
chown 70000:3000000 d/file
chmod 4751 d/file
touch -d @1700000000.25 d/file
`

test.each([['gnu'], ['pax'], ['posix']])('everything that GNU tar writes in its format %s is read', async (format) => {
  for (const pieceBytes of [1, 511, 65536]) {
    const entries = await read(gnuTar(folder, [`--format=${format}`]), pieceBytes)
    const by = (path: string) => entries.find((entry) => entry.path === path)
    expect(by('./d/')).toMatchObject({ type: 'directory', mode: 0o755 })
    expect(by('./d/file')).toMatchObject({
      type: 'file',
      mode: 0o4751,
      uid: 70000,
      gid: 3_000_000,
      text: 'hello\n',
      sizeBytes: 6,
    })
    expect(Math.floor(by('./d/file')?.modifiedAt ?? 0)).toBe(1_700_000_000)
    if (format !== 'gnu') expect(by('./d/file')?.modifiedAt).toBe(1_700_000_000.25)
    expect(by('./d/hard')).toMatchObject({ type: 'link', linkPath: './d/file' })
    expect(by('./d/symbolic')).toMatchObject({ type: 'symlink', linkPath: 'target/'.repeat(20) })
    expect(by('./d/fifo')).toMatchObject({ type: 'fifo' })
    expect(by('./d/null')).toMatchObject({ type: 'character', major: 1, minor: 3 })
    expect(by(`./d/${'long-'.repeat(18)}/${'name-'.repeat(19)}/x`)?.text).toBe('deep\n')
    // A name is bytes, whatever the encoding.
    expect(by('./d/\xfflatin')?.text).toBe('\xc3\xa4')
  }
})

test.each([
  ['gnu', []],
  ['pax', ['--sparse-version=0.0']],
  ['pax', ['--sparse-version=0.1']],
  ['pax', ['--sparse-version=1.0']],
])('sparse files are read where their data is: %s %s', async (format, options) => {
  // More pieces than the first header of the old format takes.
  const script = `truncate -s 40M s; for n in $(seq 0 29); do printf "piece $n" | dd of=s bs=1M seek=$n conv=notrunc status=none; done; echo after > t`
  const entries = await read(gnuTar(script, ['--sparse', `--format=${format}`, ...options]), 4096)
  const sparse = entries.find(({ path }) => path === './s')
  expect(sparse?.sizeBytes).toBe(40 * 2 ** 20)
  const segments = sparse?.segments ?? []
  expect(segments.length).toBe(30)
  let at = 0
  for (const [n, { offsetBytes, lengthBytes }] of segments.entries()) {
    expect(offsetBytes).toBe(n * 2 ** 20)
    expect(sparse?.text.slice(at, at + `piece ${n}`.length)).toBe(`piece ${n}`)
    at += lengthBytes
  }
  expect(at).toBe(sparse?.text.length)
  expect(entries.find(({ path }) => path === './t')?.text).toBe('after\n')
})

test('an attribute that is kept keeps nothing of what stood around it', async () => {
  const records = { 'SCHILY.xattr.user.note': 'short' }
  const [entry] = await read(rawTar([{ path: 'x', content: Buffer.alloc(200_000), records }]), 1 << 18)
  expect(entry?.attributes.get('user.note')?.buffer.byteLength).toBeLessThan(1 << 17)
})

test('extended attributes are bytes', async () => {
  const capability = Buffer.from([1, 0, 0, 2, 0x80, 0x0a, 0, 0, 0, 0, 0, 0, 0xff, 0, 0, 0, 0, 0, 0, 0])
  const [entry] = await read(rawTar([{ path: 'ping', records: { 'SCHILY.xattr.security.capability': capability } }]))
  expect(entry?.attributes.get('security.capability')).toEqual(capability)
})

test('what follows the end is nobody’s, and an archive may end without one', async () => {
  const archive = rawTar([{ path: 'a', content: 'x' }])
  expect((await read(Buffer.concat([archive, Buffer.alloc(10_240), rawTar([{ path: 'b' }])]))).length).toBe(1)
  expect((await read(rawEntry({ path: 'a', content: 'x' }))).length).toBe(1)
  expect(await read(Buffer.alloc(0))).toEqual([])
})

test('a size in front of what has no content takes nothing from what follows', async () => {
  const entries = await read(
    rawTar([
      { path: 'd', type: '5', sizeBytes: 5000 },
      { path: 'f', content: 'x' },
    ]),
  )
  expect(entries.map(({ path }) => path)).toEqual(['d', 'f'])
})

test.each([
  ['cut off in a header', rawTar([{ path: 'a' }]).subarray(0, 300), /ends in the middle/],
  ['cut off in a file', rawHeader({ path: 'a', sizeBytes: 5000 }), /ends in the middle/],
  ['cut off in an extended header', rawHeader({ path: 'a', type: 'x', sizeBytes: 600 }), /ends in the middle/],
  ['no archive', Buffer.from('x'.repeat(2000)), /no header/],
  [
    'with a wrong sum',
    (() => {
      const a = rawTar([{ path: 'a' }])
      a[0] = 98
      return a
    })(),
    /no header/,
  ],
  [
    'an extended header without end',
    rawTar([{ path: 'a', type: 'x', sizeBytes: 8 * 2 ** 30 - 1 }]),
    /more than 1024 KiB/,
  ],
  ['a long name without end', rawTar([{ path: 'a', type: 'L', sizeBytes: 8 * 2 ** 30 - 1 }]), /more than 1024 KiB/],
  ['records that lie about their length', rawTar([{ path: 'x', type: 'x', content: '99 path=a\n' }]), /cannot be read/],
  ['a record of no length', rawTar([{ path: 'x', type: 'x', content: '0 path=a\n' }]), /cannot be read/],
  ['a kind of nobody’s', rawTar([{ path: 'a', type: 'Z' }]), /kind that no file is of/],
  [
    'sparse pieces that overlap',
    rawTar([{ path: 'a', content: 'xy', records: { 'GNU.sparse.realsize': '9', 'GNU.sparse.map': '5,1,0,1' } }]),
    /overlap/,
  ],
  [
    'sparse pieces beyond the file',
    rawTar([{ path: 'a', content: 'x', records: { 'GNU.sparse.realsize': '9', 'GNU.sparse.map': '9,1' } }]),
    /do not fit/,
  ],
  [
    'a sparse map without end',
    rawTar([
      {
        path: 'a',
        content: '9999999\n',
        records: { 'GNU.sparse.major': '1', 'GNU.sparse.minor': '0', 'GNU.sparse.realsize': '9' },
      },
    ]),
    /without a map/,
  ],
] as const)('%s is refused in a sentence', async (_, archive, sentence) => {
  await expect(read(archive)).rejects.toThrow(sentence)
})
