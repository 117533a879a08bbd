import { randomBytes } from 'node:crypto'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { gzipSync, zstdCompressSync } from 'node:zlib'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { blobPath } from './blobs.ts'
import type { Compression, Layer } from './documents.ts'
import { archiveOf, mergeLayers } from './layers.ts'
import { readTar } from './tar-reader.ts'
import { rawRecord, rawTar } from './testing/layers.ts'
import { sha256 } from './testing/registry.ts'

/** Layers as they lie on the disk, unpacked and merged. */

const MiB = 2 ** 20
let folder: string
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'berth-blobs-'))
})
afterEach(() => rmSync(folder, { recursive: true }))

function blob(packed: Buffer, compression: Compression): Layer {
  const digest = sha256(packed)
  writeFileSync(blobPath(folder, digest), packed)
  return { digest, sizeBytes: packed.length, compression }
}

function merge(layers: { packed: Buffer; compression: Compression; tar: Buffer }[], mostBytes = 64 * MiB) {
  const blobs = layers.map(({ packed, compression }) => blob(packed, compression))
  const diffIds = layers.map(({ tar }) => sha256(tar))
  return { blobs, merged: mergeLayers(folder, blobs, diffIds, mostBytes, () => {}) }
}

/** Pieces of any length, and some of none. */
function pieces(bytes: Buffer): Buffer[] {
  const found: Buffer[] = []
  for (let at = 0, length = 1; at < bytes.length; at += length, length = (length * 3) % 70_001)
    found.push(bytes.subarray(at, at + length))
  return [...found, Buffer.alloc(0)]
}

/** What programs that read ahead by file lay between the frames. @see RFC 8878, 3.1.2 */
const skippable = Buffer.concat([Buffer.from([0x5a, 0x2a, 0x4d, 0x18, 5, 0, 0, 0]), Buffer.from('notes')])

test.each<[string, Compression, (tar: Buffer) => Buffer]>([
  ['gzip, in many members', 'gzip', (tar) => Buffer.concat(pieces(tar).map((piece) => gzipSync(piece)))],
  ['gzip, and zeros after it', 'gzip', (tar) => Buffer.concat([gzipSync(tar), Buffer.alloc(1000)])],
  ['zstd, in many frames', 'zstd', (tar) => Buffer.concat(pieces(tar).map((piece) => zstdCompressSync(piece)))],
  [
    'zstd, with notes between and after its frames',
    'zstd',
    (tar) => Buffer.concat([skippable, ...pieces(tar).flatMap((piece) => [zstdCompressSync(piece), skippable])]),
  ],
])('a layer that is packed as %s is read whole', async (_, compression, pack) => {
  const content = Buffer.from(Array.from({ length: 300_000 }, (_, n) => n * n))
  const tar = rawTar([
    { path: 'first', content },
    { path: 'last', content: 'the end' },
  ])
  const { blobs, merged } = merge([{ packed: pack(tar), compression, tar }])
  const { plan } = await merged
  const found: Record<string, Buffer> = {}
  for await (const entry of readTar(archiveOf(folder, blobs, plan, () => {}))) {
    if (entry.type !== 'file') continue
    const parts: Buffer[] = []
    for await (const part of entry.content()) parts.push(part)
    found[entry.path] = Buffer.concat(parts)
  }
  expect(Object.keys(found)).toEqual(['first', 'last'])
  expect(found.first?.equals(content)).toBe(true)
  expect(found.last?.toString()).toBe('the end')
})

test('what says who there is, is that of the last layer that has it, and of none when it is taken away', async () => {
  const none = (tar: Buffer) => ({ packed: tar, compression: 'none' as const, tar })
  const users = (text: string) => rawTar([{ path: './etc/passwd', content: text }])
  const second = [none(users('first')), none(users('second'))]
  expect((await merge(second).merged).texts.get('etc/passwd')).toBe('second')
  const gone = none(rawTar([{ path: 'etc/.wh.passwd' }]))
  expect((await merge([...second, gone]).merged).texts.has('etc/passwd')).toBe(false)
  const elsewhere = none(rawTar([{ path: 'etc/passwd', type: '2', linkPath: '/run/passwd' }]))
  expect((await merge([...second, elsewhere]).merged).texts.has('etc/passwd')).toBe(false)
})

test.each<[Compression, (tar: Buffer) => Buffer]>([
  ['gzip', (tar) => gzipSync(tar)],
  ['zstd', (tar) => zstdCompressSync(tar)],
])('a little that becomes much (%s) is refused', async (compression, pack) => {
  const tar = rawTar([{ path: 'zeros', content: Buffer.alloc(64 * MiB) }])
  const packed = pack(tar)
  expect(packed.length).toBeLessThan(MiB / 4)
  await expect(merge([{ packed, compression, tar }], MiB).merged).rejects.toMatchObject({
    code: 'image.too_large',
    message: 'The image is larger than 1.0 MiB, unpacked',
  })
})

test('attributes that would take a server’s memory are refused, however little says them', async () => {
  const everybody = rawRecord('SCHILY.xattr.user.note', Buffer.alloc(3_400, 'x'))
  const names = Array.from({ length: 21_000 }, (_, number) => ({ path: `${number}` }))
  const tar = rawTar([{ path: 'all', type: 'g', content: everybody }, ...names])
  await expect(merge([{ packed: gzipSync(tar), compression: 'gzip', tar }]).merged).rejects.toMatchObject({
    code: 'image.too_large',
    message: 'The image has more than 64.0 MiB of extended attributes',
  })
})

test.each<[string, Compression, (tar: Buffer) => Buffer, RegExp]>([
  ['is cut off', 'gzip', (tar) => gzipSync(tar).subarray(0, 500), /^A layer is not packed as it says$/],
  ['is cut off', 'zstd', (tar) => zstdCompressSync(tar).subarray(0, 500), /^A layer is not packed as it says$/],
  ['is none', 'gzip', () => Buffer.from('not packed at all'), /^A layer is not packed as it says$/],
  ['is none', 'zstd', () => Buffer.from('not packed at all'), /^A layer is not packed as it says$/],
  [
    'is followed by what is none',
    'zstd',
    (tar) => Buffer.concat([zstdCompressSync(tar), Buffer.from('more of it')]),
    /^A layer is not packed as it says$/,
  ],
  [
    'is followed by more of it',
    'zstd',
    (tar) => Buffer.concat([zstdCompressSync(tar), zstdCompressSync(Buffer.from('more'))]),
    /is not what its configuration says$/,
  ],
])('a layer whose packing %s (%s) is refused in a sentence', async (_, compression, pack, message) => {
  const tar = rawTar([{ path: 'x', content: randomBytes(5_000) }])
  await expect(merge([{ packed: pack(tar), compression, tar }]).merged).rejects.toThrow(message)
})
