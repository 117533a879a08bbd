import { ImageError } from './errors.ts'
import { limits } from './limits.ts'
import type { DirectoryNode, FileNode, Node } from './tree.ts'

/**
 * Writes a tree as one archive that GNU tar unpacks: every path once, below directories that are directories, what hard
 * links lead to before them. GNU's format, because it takes names as the bytes they are; extended headers (pax) only for
 * what it has no place for.
 * @see https://www.gnu.org/software/tar/manual/html_node/Standard.html
 */
const BLOCK = 512
const END = Buffer.alloc(2 * BLOCK)

/** Where everything of a tree comes in the archive. */
export type Plan = {
  /** directories, links, devices: in the order in which they are written, before all files */
  readonly first: readonly Placed[]
  /** by layer, then by the number of the entry whose bytes they are */
  readonly files: ReadonlyMap<number, ReadonlyMap<number, PlacedFile>>
  /** further names of what came before */
  readonly links: readonly { readonly path: string; readonly target: string; readonly node: Node }[]
  /** files and directories, hard links counted once */
  readonly inodes: number
  /** of all files, holes not counted, in blocks of ext4 */
  readonly contentBytes: number
}
export type Placed = { readonly path: string; readonly node: Exclude<Node, FileNode> }
export type PlacedFile = { readonly path: string; readonly node: FileNode }

/** @throws ImageError when a path became too long by the links that it goes over */
export function planTree(root: DirectoryNode): Plan {
  const first: Placed[] = []
  const links: { path: string; target: string; node: Node }[] = []
  const files = new Map<number, Map<number, PlacedFile>>()
  const seen = new Map<Node, string>()
  let contentBytes = 0
  const pending: { path: string; node: Node }[] = [{ path: '', node: root }]
  for (let next = pending.pop(); next; next = pending.pop()) {
    const { path, node } = next
    if (path.length > limits.pathBytes - 1)
      throw new ImageError('image.invalid', 'The image has a path that is too long')
    if (node.type === 'directory') {
      if (node !== root) first.push({ path, node })
      contentBytes += onDisk(node.children.size * 32)
      const children = [...node.children].sort(([a], [b]) => (a < b ? 1 : -1))
      for (const [name, child] of children) pending.push({ path: path === '' ? name : `${path}/${name}`, node: child })
      continue
    }
    const target = seen.get(node)
    if (target !== undefined) {
      links.push({ path, target, node })
      continue
    }
    seen.set(node, path)
    if (node.type !== 'file') {
      first.push({ path, node })
      if (node.type === 'symlink') contentBytes += onDisk(node.target.length > 59 ? node.target.length : 0)
      continue
    }
    contentBytes += onDisk(node.segments?.reduce((sum, { lengthBytes }) => sum + lengthBytes, 0) ?? node.sizeBytes)
    const ofLayer = files.get(node.layer) ?? new Map<number, PlacedFile>()
    files.set(node.layer, ofLayer.set(node.index, { path, node }))
  }
  return {
    first,
    files,
    links,
    inodes: seen.size + first.filter(({ node }) => node.type === 'directory').length + 1,
    contentBytes,
  }
}

function onDisk(bytes: number): number {
  return Math.ceil(bytes / 4096) * 4096
}

/** A header and what belongs to it, for anything but a file's data, which follows it and is padded by `padding`. */
export function headerOf({ path, node }: { path: string; node: Node }): Buffer {
  switch (node.type) {
    case 'directory':
      return header(node, { path: `${path}/`, typeFlag: '5' })
    case 'symlink':
      return header({ ...node, mode: 0o777 }, { path, typeFlag: '2', linkPath: node.target })
    case 'file':
      return fileHeader(path, node)
    default: {
      const typeFlag = node.type === 'character' ? '3' : node.type === 'block' ? '4' : '6'
      return header(node, { path, typeFlag, major: node.major, minor: node.minor })
    }
  }
}

export function linkHeader({ path, target, node }: Plan['links'][number]): Buffer {
  return header({ ...node, attributes: new Map() }, { path, typeFlag: '1', linkPath: target })
}

/** Zeros up to the next block. */
export function padding(lengthBytes: number): Buffer {
  return END.subarray(0, (BLOCK - (lengthBytes % BLOCK)) % BLOCK)
}

export function ending(): Buffer {
  return END
}

/** How much data follows a file's header. */
export function storedBytes(node: FileNode): number {
  return node.segments?.reduce((sum, { lengthBytes }) => sum + lengthBytes, 0) ?? node.sizeBytes
}

/** Sparse files are GNU's format 1.0: their map is the beginning of the data. */
function fileHeader(path: string, node: FileNode): Buffer {
  if (!node.segments) return header(node, { path, typeFlag: '0', sizeBytes: node.sizeBytes })
  // GNU tar makes the file as long as its pieces: a hole at its end takes one that is empty, which not everybody writes.
  const segments = [...node.segments, { offsetBytes: node.sizeBytes, lengthBytes: 0 }]
  const lines = [segments.length, ...segments.flatMap(({ offsetBytes, lengthBytes }) => [offsetBytes, lengthBytes])]
  const text = Buffer.from(`${lines.join('\n')}\n`)
  const map = Buffer.concat([text, padding(text.length)])
  const records = new Map<string, Buffer>([
    ['GNU.sparse.major', Buffer.from('1')],
    ['GNU.sparse.minor', Buffer.from('0')],
    ['GNU.sparse.name', Buffer.from(path, 'latin1')],
    ['GNU.sparse.realsize', Buffer.from(String(node.sizeBytes))],
  ])
  return Buffer.concat([header(node, { path, typeFlag: '0', sizeBytes: map.length + storedBytes(node), records }), map])
}

type Fields = {
  readonly path: string
  readonly typeFlag: string
  readonly linkPath?: string
  readonly sizeBytes?: number
  readonly major?: number
  readonly minor?: number
  readonly records?: ReadonlyMap<string, Buffer>
}

type Owned = Pick<Node, 'mode' | 'uid' | 'gid' | 'modifiedAt' | 'attributes'>

function header(inode: Owned, fields: Fields): Buffer {
  const records = new Map(fields.records)
  for (const [name, value] of inode.attributes) records.set(`SCHILY.xattr.${name}`, value)
  if (!Number.isInteger(inode.modifiedAt)) records.set('mtime', Buffer.from(inode.modifiedAt.toFixed(9)))
  const path = Buffer.from(fields.path, 'latin1')
  const linkPath = Buffer.from(fields.linkPath ?? '', 'latin1')
  const parts: Buffer[] = []
  if (records.size > 0) {
    const body = Buffer.concat([...records].map(([key, value]) => record(key, value)))
    parts.push(
      block({ path: Buffer.from('././@PaxHeader'), typeFlag: 'x', sizeBytes: body.length }),
      body,
      padding(body.length),
    )
  }
  if (linkPath.length > 100) parts.push(...long('K', linkPath))
  if (path.length > 100) parts.push(...long('L', path))
  parts.push(
    block({
      path,
      linkPath,
      isPosix: records.size > 0,
      typeFlag: fields.typeFlag,
      sizeBytes: fields.sizeBytes ?? 0,
      mode: inode.mode,
      uid: inode.uid,
      gid: inode.gid,
      modifiedAt: Math.floor(inode.modifiedAt),
      major: fields.major ?? 0,
      minor: fields.minor ?? 0,
    }),
  )
  return Buffer.concat(parts)
}

/** A record says its own length, the digits of that length included. */
function record(key: string, value: Buffer): Buffer {
  const rest = key.length + value.length + 3
  let length = rest + String(rest).length
  length = rest + String(length).length
  return Buffer.concat([Buffer.from(`${length} ${key}=`), value, Buffer.from('\n')])
}

function long(typeFlag: 'K' | 'L', text: Buffer): Buffer[] {
  const body = Buffer.concat([text, Buffer.alloc(1)])
  return [block({ path: Buffer.from('././@LongLink'), typeFlag, sizeBytes: body.length }), body, padding(body.length)]
}

function block(fields: {
  path: Buffer
  typeFlag: string
  sizeBytes: number
  isPosix?: boolean
  linkPath?: Buffer
  mode?: number
  uid?: number
  gid?: number
  modifiedAt?: number
  major?: number
  minor?: number
}): Buffer {
  const bytes = Buffer.alloc(BLOCK)
  fields.path.copy(bytes, 0, 0, 100)
  number(bytes, 100, 8, fields.mode ?? 0o644)
  number(bytes, 108, 8, fields.uid ?? 0)
  number(bytes, 116, 8, fields.gid ?? 0)
  number(bytes, 124, 12, fields.sizeBytes)
  number(bytes, 136, 12, fields.modifiedAt ?? 0)
  bytes.fill(0x20, 148, 156)
  bytes.write(fields.typeFlag, 156, 'latin1')
  fields.linkPath?.copy(bytes, 157, 0, 100)
  // GNU tar heeds what an extended header says of a sparse file only where the header after it is POSIX's.
  bytes.write(fields.isPosix ? 'ustar\x0000' : 'ustar  \0', 257, 'latin1')
  number(bytes, 329, 8, fields.major ?? 0)
  number(bytes, 337, 8, fields.minor ?? 0)
  const sum = bytes.reduce((all, byte) => all + byte, 0)
  bytes.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 'latin1')
  return bytes
}

/** Octal while it fits, else GNU's base 256. */
function number(bytes: Buffer, at: number, length: number, value: number): void {
  const octal = value.toString(8)
  if (octal.length < length) {
    bytes.write(octal.padStart(length - 1, '0'), at, 'latin1')
    return
  }
  for (let n = length - 1, left = BigInt(value); n > 0; n--, left >>= 8n) bytes[at + n] = Number(left & 0xffn)
  bytes[at] = 0x80
}
