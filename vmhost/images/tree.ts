import { ImageError, printable } from './errors.ts'
import { limits } from './limits.ts'
import type { Segment, TarEntry } from './tar-reader.ts'

/**
 * The file tree that layers make, in memory: names, owners, modes, links, and where each file's bytes lie. Nothing on this
 * server is touched by what a layer says; what is written in the end is this tree, each path of it once, below directories
 * that are directories. So there is no path that leads out of it, whatever names and links the layers are made of.
 *
 * Layers apply as container engines apply them: paths follow the links that are there, inside the tree; what a layer
 * takes away it takes from the layers below, wherever in the layer that is said.
 * @see https://github.com/opencontainers/image-spec/blob/main/layer.md, "Applying Changesets", "Whiteouts"
 */
export type Node = DirectoryNode | FileNode | SymlinkNode | SpecialNode

type Inode = {
  mode: number
  uid: number
  gid: number
  modifiedAt: number
  attributes: ReadonlyMap<string, Buffer>
}
export type DirectoryNode = Inode & { readonly type: 'directory'; readonly children: Map<string, Node> }
export type FileNode = Inode & {
  readonly type: 'file'
  readonly sizeBytes: number
  readonly segments: readonly Segment[] | undefined
  /** which entry of which layer has its bytes */
  readonly layer: number
  readonly index: number
}
export type SymlinkNode = Inode & { readonly type: 'symlink'; readonly target: string }
export type SpecialNode = Inode & {
  readonly type: 'character' | 'block' | 'fifo'
  readonly major: number
  readonly minor: number
}

/** An entry without its content. */
export type Change = Omit<TarEntry, 'content'>

const WHITEOUT = '.wh.'
/** Of AUFS, for its own use; the one that takes a whole directory away is the exception. */
const WHITEOUT_OWN = '.wh..wh.'
const OPAQUE = '.wh..wh..opq'

export function emptyTree(): DirectoryNode {
  return directory()
}

/**
 * Applies one layer.
 * @param changes its entries, in their order
 * @throws ImageError `image.invalid`
 */
export function applyLayer(root: DirectoryNode, layer: number, changes: readonly Change[]): void {
  const paths = changes.map(({ path }) => split(path))
  // First what it takes away, so that it takes nothing that it brings itself.
  for (const path of paths) takeAway(root, path)
  for (const [index, change] of changes.entries()) {
    const path = paths[index] ?? []
    if (!path.some((name) => name.startsWith(WHITEOUT))) put(root, path, change, layer, index)
  }
}

/**
 * Makes the folders that systems are mounted on and programs expect, where they are missing: a container engine brings
 * them itself, and an image of one program has nothing else.
 */
export function addMountPoints(root: DirectoryNode): void {
  for (const [name, mode] of [...['dev', 'etc', 'proc', 'run', 'sys'].map((path) => [path, 0o755] as const), tmp])
    if (!root.children.has(name)) root.children.set(name, { ...directory(), mode })
}
const tmp = ['tmp', 0o1777] as const

/** The node that a path leads to, links followed; undefined when there is none, or the links lead in a circle. */
export function find(root: DirectoryNode, path: string): Node | undefined {
  try {
    return walk(root, split(path), { follow: true, make: false })
  } catch (error) {
    if (error instanceof ImageError) return undefined
    throw error
  }
}

function takeAway(root: DirectoryNode, path: readonly string[]): void {
  const name = path.at(-1)
  if (name === undefined || !name.startsWith(WHITEOUT)) return
  const parent = walk(root, path.slice(0, -1), { follow: true, make: false })
  if (parent?.type !== 'directory') return
  if (name === OPAQUE) parent.children.clear()
  else if (!name.startsWith(WHITEOUT_OWN)) parent.children.delete(name.slice(WHITEOUT.length))
}

function put(root: DirectoryNode, path: readonly string[], change: Change, layer: number, index: number): void {
  const name = path.at(-1)
  if (name === undefined) {
    if (change.type === 'directory') Object.assign(root, inodeOf(change))
    return
  }
  const parent = walk(root, path.slice(0, -1), { follow: true, make: true })
  if (parent?.type !== 'directory') throw invalid(`a file below what is no directory`, change.path)
  const there = parent.children.get(name)
  if (change.type === 'directory' && there?.type === 'directory') {
    Object.assign(there, inodeOf(change))
    return
  }
  parent.children.set(name, change.type === 'link' ? linked(root, change) : nodeOf(change, layer, index))
}

/** What a hard link leads to: a file that is there already, in this layer or one below. */
function linked(root: DirectoryNode, change: Change): Node {
  const path = split(change.linkPath)
  const parent = walk(root, path.slice(0, -1), { follow: true, make: false })
  const target = parent?.type === 'directory' ? parent.children.get(path.at(-1) ?? '') : undefined
  if (!target) throw invalid('a hard link to what is not there', change.path)
  if (target.type === 'directory') throw invalid('a hard link to a directory', change.path)
  return target
}

function nodeOf(change: Change, layer: number, index: number): Node {
  const inode = inodeOf(change)
  switch (change.type) {
    case 'directory':
      return { ...inode, type: 'directory', children: new Map() }
    case 'symlink':
      if (change.linkPath === '' || change.linkPath.length > limits.pathBytes || change.linkPath.includes('\0'))
        throw invalid('a symbolic link that leads nowhere', change.path)
      return { ...inode, attributes: none, type: 'symlink', target: change.linkPath }
    case 'character':
    case 'block':
    case 'fifo':
      if (!isWithin(change.major, 0xfff) || !isWithin(change.minor, 0xfffff))
        throw invalid('a device that cannot be', change.path)
      return { ...inode, attributes: none, type: change.type, major: change.major, minor: change.minor }
    default:
      return { ...inode, type: 'file', sizeBytes: change.sizeBytes, segments: change.segments, layer, index }
  }
}

function inodeOf(change: Change): Inode {
  const { mode, uid, gid, modifiedAt } = change
  if (!isWithin(uid, 0xffff_fffe) || !isWithin(gid, 0xffff_fffe)) throw invalid('an owner that cannot be', change.path)
  return { mode, uid, gid, modifiedAt: inRange(modifiedAt), attributes: keptAttributes(change) }
}

/** ext4 keeps times from 1901 to 2446; a layer that is older or newer than that is only wrong. */
function inRange(seconds: number): number {
  return Math.min(Math.max(seconds, 0), 0x3_7fff_ffff)
}

/**
 * What programs set on files for others to heed, and the capabilities that make `ping` work. Labels of a security module
 * that the machine has not, and marks of overlay filesystems, would be this server's business.
 */
export function keptAttributes(change: Pick<Change, 'attributes' | 'path'>): ReadonlyMap<string, Buffer> {
  if (change.attributes.size === 0) return none
  const found = new Map<string, Buffer>()
  let bytes = 0
  for (const [name, value] of change.attributes) {
    if (name !== 'security.capability' && !/^user\.[\x21-\x7e]{1,200}$/.test(name)) continue
    if (name === 'security.capability' && ![12, 20, 24].includes(value.length)) continue
    if (name.includes('=')) continue
    bytes += name.length + value.length + 32
    if (bytes > limits.attributesBytes) throw invalid('more extended attributes than a disk takes', change.path)
    found.set(name, value)
  }
  return found
}

const none: ReadonlyMap<string, Buffer> = new Map()

function directory(): DirectoryNode {
  return { type: 'directory', mode: 0o755, uid: 0, gid: 0, modifiedAt: 0, attributes: none, children: new Map() }
}

/**
 * Goes down a path inside the tree; a link's `..` ends at the root.
 * @param make directories that are missing are made, and stand in the place of what is none
 */
function walk(
  root: DirectoryNode,
  path: readonly string[],
  { follow, make }: { follow: boolean; make: boolean },
): Node | undefined {
  const trail: DirectoryNode[] = [root]
  const left = [...path].reverse()
  let links = 0
  for (let name = left.pop(); name !== undefined; name = left.pop()) {
    const here = trail.at(-1) ?? root
    if (name === '..') {
      if (trail.length > 1) trail.pop()
      continue
    }
    let node = here.children.get(name)
    if (node?.type === 'symlink' && (follow || left.length > 0)) {
      if (++links > limits.symlinks) throw invalid('symbolic links that lead in a circle', path.join('/'))
      if (node.target.startsWith('/')) trail.length = 1
      const parts = node.target.split('/').filter((part) => part !== '' && part !== '.')
      if (left.length + parts.length > limits.pathBytes) throw invalid('symbolic links without an end', path.join('/'))
      left.push(...parts.reverse())
      continue
    }
    if (node?.type !== 'directory' && make) {
      if (name.length > limits.nameBytes) throw invalid('a name that is too long', path.join('/'))
      node = directory()
      here.children.set(name, node)
    }
    if (node?.type === 'directory') trail.push(node)
    else return left.length === 0 ? node : undefined
  }
  return trail.at(-1)
}

/** @throws ImageError when it leads out of the tree, or is longer than a path may be */
function split(path: string): string[] {
  const parts = path.split('/').filter((part) => part !== '' && part !== '.')
  if (parts.includes('..')) throw invalid('a path that leads out of it', path)
  if (path.includes('\0') || path.length > limits.pathBytes || parts.some((part) => part.length > limits.nameBytes))
    throw invalid('a path that is too long', path)
  return parts
}

function isWithin(value: number, most: number): boolean {
  return Number.isInteger(value) && value >= 0 && value <= most
}

function invalid(what: string, path: string): ImageError {
  const shown = printable(Buffer.from(path, 'latin1').toString('utf8'), 80)
  return new ImageError('image.invalid', `A layer of the image has ${what}: ${shown}`)
}
