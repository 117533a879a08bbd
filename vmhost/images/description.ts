import { environmentProblem } from '../guest/environment.ts'
import type { ImageConfig } from './documents.ts'
import { type DirectoryNode, find } from './tree.ts'

/** How a machine of an image is to be used, as far as the image says: read from its configuration and its files. */
export type ImageDescription = {
  /** whom sessions are for */
  readonly loginUser: string
  /** it has an init of its own, which runs as PID 1 */
  readonly init: boolean
  /** what its pages are shown from; null: it does not say */
  readonly webPort: number | null
  readonly environment: Readonly<Record<string, string>>
  /** what a container of it would run; null: nothing, or nobody who could */
  readonly service: Service | null
}

export type Service = {
  readonly arguments: readonly string[]
  readonly uid: number
  readonly gid: number
  readonly workingDirectory: string
}

/** Labels that decide over what the rest of the image says. The second is what images made for exe.dev carry. */
const LOGIN_LABELS = ['berth.login-user', 'exe.dev/login-user']
const PORT_LABEL = 'berth.port'

/** Where the platform's programs are in a machine; last on the path, so that they hide nobody's own. */
const TOOLS_PATH = '/exe/bin'

/** @param texts etc/passwd and etc/group of the image, bytes as characters */
export function describe(
  config: ImageConfig,
  root: DirectoryNode,
  texts: ReadonlyMap<string, string>,
): ImageDescription {
  const users = parseUsers(texts.get('etc/passwd') ?? '')
  const owner = ownerOf(config.user, users, texts.get('etc/group') ?? '')
  return {
    loginUser: loginUser(config, root, users),
    init: hasInit(root),
    webPort: webPort(config),
    environment: environment(config),
    service:
      config.arguments.length > 0 && owner && canBeTold(config.arguments)
        ? { arguments: config.arguments, ...owner, workingDirectory: directoryOf(config) }
        : null,
  }
}

function directoryOf({ workingDirectory }: ImageConfig): string {
  return /^\/[^\0]{0,254}$/.test(workingDirectory) ? workingDirectory : '/'
}

/** What exe-init takes; nobody's program has more. */
function canBeTold(words: readonly string[]): boolean {
  const bytes = words.reduce((sum, word) => sum + Buffer.byteLength(word) + 1, 0)
  return words.length <= 512 && bytes <= 64 * 1024 && words.every((word) => !word.includes('\0'))
}

type User = { name: string; uid: number; gid: number; shell: string }

function parseUsers(text: string): User[] {
  return text.split('\n').flatMap((line) => {
    const [name = '', , uid = '', gid = '', , , shell = ''] = line.split(':')
    if (name === '' || !/^\d{1,10}$/.test(uid) || !/^\d{1,10}$/.test(gid)) return []
    return [{ name, uid: Number(uid), gid: Number(gid), shell: shell.trim() || '/bin/sh' }]
  })
}

/** The label's; else the one that a container runs as, if people can log in as that; else root. */
function loginUser(config: ImageConfig, root: DirectoryNode, users: readonly User[]): string {
  for (const label of LOGIN_LABELS) {
    const name = config.labels[label]
    if (name !== undefined && isUserName(name)) return name
  }
  const [wanted = ''] = config.user.split(':')
  const user = users.find(({ name, uid }) => name === wanted || String(uid) === wanted)
  return user && isUserName(user.name) && isShell(root, user.shell) ? user.name : 'root'
}

/** As exe-init takes names. */
function isUserName(name: string): boolean {
  return /^[a-z_][a-z0-9_-]{0,31}$/.test(name)
}

function isShell(root: DirectoryNode, path: string): boolean {
  return !/\/(nologin|false|sync|halt|shutdown)$/.test(path) && isExecutable(root, path)
}

function isExecutable(root: DirectoryNode, path: string): boolean {
  const node = path.startsWith('/') ? find(root, path) : undefined
  return node?.type === 'file' && (node.mode & 0o111) !== 0
}

/** As exe-init decides it when the machine boots (init/stage_one.c): BusyBox's is one only where OpenRC is. */
function hasInit(root: DirectoryNode): boolean {
  const places = ['/sbin/init', '/usr/sbin/init', '/lib/systemd/systemd', '/usr/lib/systemd/systemd']
  const busybox = ['/bin/busybox', '/usr/bin/busybox', '/sbin/busybox', '/bin/busybox.static'].map((path) =>
    find(root, path),
  )
  return places.some((path) => {
    if (!isExecutable(root, path)) return false
    return !busybox.includes(find(root, path)) || isExecutable(root, '/sbin/openrc')
  })
}

/** Where its pages come from: the label's port, else of those that it exposes 80, else the lowest from 1024 on. */
function webPort({ labels, ports }: ImageConfig): number | null {
  const label = Number(labels[PORT_LABEL])
  if (Number.isInteger(label) && label >= 1 && label <= 65535) return label
  if (ports.includes(80)) return 80
  return ports.find((port) => port >= 1024) ?? null
}

/** Half of what a machine may have: its owner's own come on top. */
const environmentMost = 128
const environmentMostBytes = 32 * 1024

/** What a machine can be given of it; the rest is for containers alone. */
function environment({ environment: given }: ImageConfig): Record<string, string> {
  const found: Record<string, string> = {}
  let bytes = 0
  for (const text of given) {
    const equals = text.indexOf('=')
    if (equals < 1) continue
    const name = text.slice(0, equals)
    const value = name === 'PATH' ? withTools(text.slice(equals + 1)) : text.slice(equals + 1)
    bytes += name.length + Buffer.byteLength(value)
    if (bytes > environmentMostBytes || Object.keys(found).length >= environmentMost) break
    if (environmentProblem(name, value)) continue
    found[name] = value
  }
  return found
}

function withTools(path: string): string {
  return path.split(':').includes(TOOLS_PATH) ? path : `${path}:${TOOLS_PATH}`
}

/** @returns undefined when the image names a user that it has not */
function ownerOf(text: string, users: readonly User[], groupText: string): { uid: number; gid: number } | undefined {
  const [user = '', group] = text.split(':')
  const found = user === '' ? { uid: 0, gid: 0 } : users.find(({ name, uid }) => name === user || String(uid) === user)
  const uid = found?.uid ?? numberOf(user)
  const gid = group === undefined || group === '' ? (found?.gid ?? 0) : (groupOf(group, groupText) ?? numberOf(group))
  return uid === undefined || gid === undefined ? undefined : { uid, gid }
}

function groupOf(group: string, text: string): number | undefined {
  for (const line of text.split('\n')) {
    const [name, , gid] = line.split(':')
    if (name === group && gid !== undefined) return numberOf(gid)
  }
  return undefined
}

function numberOf(text: string): number | undefined {
  return /^\d{1,10}$/.test(text) && Number(text) < 0xffff_ffff ? Number(text) : undefined
}
