import { execFile, spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { closeSync, constants, openSync } from 'node:fs'
import { mkdir, mkdtemp, open, readdir, readlink, rename, rm, stat, symlink, writeFile } from 'node:fs/promises'
import { basename, dirname, join, relative } from 'node:path'
import { promisify } from 'node:util'

const execFileAsync = promisify(execFile)

/**
 * The folder of immutable things that set-up makes: kernel, tools disk, images, and the parts they are made of.
 *
 * An artifact is a folder named by a hash of everything that went into it. It appears in one rename of a folder
 * that was complete and on disk, so whoever finds one may use it; an interrupted build leaves only a folder in
 * `.work/`, which the next builder removes. What went in is partly known only after asking the network (package
 * versions), so a second, smaller hash, that of the recipe, leads to the last result: `.recipes/<key>-<hash>` is a
 * symbolic link to it. With the link there, set-up touches nothing and needs no network.
 */
export type ArtifactStore = {
  /** Absolute path. */
  path: string
  /** Held while building; one builder at a time, waited for by the others. */
  lock(onWait?: () => void): Promise<Disposable>
}

export type Recipe = {
  /** `boot`, `image-base`, `part-sshd`: names the recipe link. */
  key: string
  /** Folder under the store that results go to: `boot`, `images`, `parts`. */
  folder: string
  /** Result names are `<prefix><hash>`. */
  prefix: string
  /** Everything known before building; any change of it builds again. */
  inputs: unknown
}

/** What only the network or a compiler could tell and that belongs to the identity: versions, hashes of binaries. */
export type Resolved = Record<string, unknown>

export function openStore(path: string): ArtifactStore {
  return { path, lock: (onWait) => lockFile(join(path, '.lock'), onWait) }
}

/** SHA-256 over canonical JSON, first 16 hex digits: enough to name, never used to authenticate. */
export function hashOf(value: unknown): string {
  return createHash('sha256').update(canonical(value)).digest('hex').slice(0, 16)
}

function canonical(value: unknown): string {
  return JSON.stringify(value, (_key, inner: unknown) => {
    if (inner === null || typeof inner !== 'object' || Array.isArray(inner)) return inner
    return Object.fromEntries(Object.entries(inner).sort(([a], [b]) => (a < b ? -1 : 1)))
  })
}

function recipeLink(store: ArtifactStore, recipe: Recipe): string {
  return join(store.path, '.recipes', `${recipe.key}-${hashOf(recipe.inputs)}`)
}

/** @returns the finished artifact's path, or undefined when it has to be built */
export async function findArtifact(store: ArtifactStore, recipe: Recipe): Promise<string | undefined> {
  const link = recipeLink(store, recipe)
  const target = await readlink(link).catch(() => undefined)
  if (target === undefined) return undefined
  const path = join(dirname(link), target)
  return (await stat(path).catch(() => undefined))?.isDirectory() ? path : undefined
}

export type Build = {
  /** Finds out which versions would go in; cheap, before anything is built. */
  resolve: () => Promise<Resolved>
  /** Fills `directory`; `work` is scratch space beside it, removed afterwards. */
  make: (directory: string, work: string) => Promise<unknown>
  /** The JSON file that completes the artifact; `made` is what `make` returned. */
  describe?: (hash: string, resolved: Resolved, made: unknown) => { file: string; content: unknown }
}

/**
 * Builds an artifact unless the very same is there, publishes it and records it for its recipe. The caller holds the
 * store's lock.
 * @returns the artifact's path
 */
export async function buildArtifact(store: ArtifactStore, recipe: Recipe, build: Build): Promise<string> {
  const resolved = await build.resolve()
  const hash = hashOf({ inputs: recipe.inputs, resolved })
  const final = join(store.path, recipe.folder, `${recipe.prefix}${hash}`)
  if (!(await stat(final).catch(() => undefined))) {
    const work = await makeWorkDirectory(store, recipe.key)
    try {
      const directory = join(work, 'result')
      const scratch = join(work, 'scratch')
      for (const path of [directory, scratch]) await mkdir(path, { mode: 0o755 })
      const made = await build.make(directory, scratch)
      const description = build.describe?.(hash, resolved, made)
      if (description) {
        await writeFile(join(directory, description.file), `${JSON.stringify(description.content, null, 2)}\n`)
      }
      await publish(directory, final)
    } finally {
      await remove(work)
    }
  }
  await replaceLink(recipeLink(store, recipe), relative(join(store.path, '.recipes'), final))
  return final
}

/** A folder inside the store that is removed by the next builder if this one cannot. */
async function makeWorkDirectory(store: ArtifactStore, name: string): Promise<string> {
  const parent = join(store.path, '.work')
  await mkdir(parent, { recursive: true })
  return mkdtemp(join(parent, `${name}-`))
}

/** Removes what a killed builder left. The caller holds the lock, so nobody is building. */
export async function clearWork(store: ArtifactStore): Promise<void> {
  await remove(join(store.path, '.work'))
}

/** Retried: processes of a builder that was killed a moment ago may still be creating files while they die. */
export async function remove(path: string): Promise<void> {
  await rm(path, { recursive: true, force: true, maxRetries: 10, retryDelay: 200 })
}

async function publish(directory: string, final: string): Promise<void> {
  // syncfs(2) before the rename: after a power cut the name must not be there with half of the content.
  await execFileAsync('sync', ['-f', directory])
  await mkdir(dirname(final), { recursive: true })
  try {
    await rename(directory, final)
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code
    if (code !== 'ENOTEMPTY' && code !== 'EEXIST') throw error
  }
  await syncDirectory(dirname(final))
}

/** Points a symbolic link at another target in one step: readers see the old or the new, never none. */
export async function replaceLink(link: string, target: string): Promise<void> {
  if ((await readlink(link).catch(() => undefined)) === target) return
  await mkdir(dirname(link), { recursive: true })
  const temporary = `${link}.${process.pid}.new`
  await rm(temporary, { force: true })
  await symlink(target, temporary)
  await rename(temporary, link)
  await syncDirectory(dirname(link))
}

async function syncDirectory(path: string): Promise<void> {
  const handle = await open(path, 'r')
  try {
    await handle.sync()
  } finally {
    await handle.close()
  }
}

/**
 * Removes artifacts that nothing points at and that are older than a day: a vmhost that read `current` a moment ago
 * may still be copying the one before. vmhosts keep copies of their own of what machines refer to.
 */
export async function prune(store: ArtifactStore, folder: string, prefix: string, keep: string): Promise<void> {
  const directory = join(store.path, folder)
  for (const name of await readdir(directory).catch(() => [])) {
    if (!name.startsWith(prefix) || name === basename(keep) || !/[0-9a-f]{16}$/.test(name)) continue
    const path = join(directory, name)
    const { mtimeMs, isDirectory } = await stat(path).then((s) => ({
      mtimeMs: s.mtimeMs,
      isDirectory: s.isDirectory(),
    }))
    if (isDirectory && Date.now() - mtimeMs > 24 * 3_600_000) await remove(path)
  }
}

/**
 * flock(2) through flock(1): the lock belongs to the open file, which this process keeps, so it is given back by the
 * kernel however this process ends, and no stale lock can exist.
 */
export async function lockFile(path: string, onWait?: () => void): Promise<Disposable> {
  await mkdir(dirname(path), { recursive: true })
  const descriptor = openSync(path, constants.O_RDWR | constants.O_CREAT, 0o644)
  const release = { [Symbol.dispose]: () => closeSync(descriptor) }
  try {
    if (await flock(descriptor, ['-n'])) return release
    onWait?.()
    if (await flock(descriptor, [])) return release
    throw new Error(`cannot lock ${path}`)
  } catch (error) {
    closeSync(descriptor)
    throw error
  }
}

function flock(descriptor: number, flags: string[]): Promise<boolean> {
  return new Promise((resolve, reject) => {
    const child = spawn('flock', ['-x', ...flags, '3'], { stdio: ['ignore', 'ignore', 'ignore', descriptor] })
    child.once('error', reject)
    child.once('exit', (code) => resolve(code === 0))
  })
}
