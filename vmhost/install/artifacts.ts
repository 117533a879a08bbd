import { mkdir } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { closureOf, type GuestApt, openGuestApt, prefetch } from './apt.ts'
import { assembleBoot, BOOT_RECIPE, compileInit, hashInitSources, resolveInit } from './boot.ts'
import {
  BASE_CLOSURE,
  BASE_RECIPE,
  buildBaseRoot,
  buildMinimalRoot,
  DISK_RECIPE,
  fetchNpm,
  imageScripts,
  LOGIN_USER,
  MINIMAL_CLOSURE,
  MINIMAL_RECIPE,
  makeDisk,
  unpackRoot,
} from './images.ts'
import { KERNEL_RECIPE, kernelRelease, resolveKernel, unpackKernel } from './kernel.ts'
import type { Progress, Stage } from './progress.ts'
import { buildSshd, resolveSshd, SSHD_RECIPE } from './sshd.ts'
import {
  type ArtifactStore,
  buildArtifact,
  clearWork,
  findArtifact,
  openStore,
  prune,
  type Recipe,
  remove,
  replaceLink,
} from './store.ts'

export type Artifact = 'boot' | 'minimal' | 'base'

export type EnsureOptions = {
  /** `$BERTH_DATA/artifacts`. */
  path: string
  artifacts: readonly Artifact[]
  /** Ask for newer packages although everything is there. */
  refresh: boolean
  /** The source folder of exe-init. */
  initPath: string
  progress: Progress
}

export class InstallError extends Error {
  override name = 'InstallError'
}

type Recipes = Record<'kernel' | 'sshd' | 'boot' | 'minimalRoot' | 'minimal' | 'base', Recipe>

/**
 * Makes what is missing and points `boot/current`, `images/minimal` and `images/base` at it.
 *
 * The order, left to right, what stands above each other at the same time:
 *
 *     package lists ─┬─ kernel ──────────────┬─ boot
 *     exe-init ──────┼─ sshd (download, cc) ─┘
 *                    ├─ minimal ─┬─ its disk
 *                    └─ packages ┴─ base ─ its disk
 */
export async function ensureArtifacts(options: EnsureOptions): Promise<void> {
  const store = openStore(options.path)
  const recipes = await makeRecipes(options.initPath)
  if (!options.refresh && (await pointAtFinished(store, recipes, options.artifacts))) return
  await mkdir(store.path, { recursive: true })
  let waiting: Stage | undefined
  using _lock = await store.lock(() => {
    waiting = options.progress.stage('waiting for another set-up')
  })
  waiting?.done()
  // Whoever held the lock may have built it all.
  if (!options.refresh && (await pointAtFinished(store, recipes, options.artifacts))) return
  await clearWork(store)
  await build(store, recipes, options)
  for (const [folder, prefix, recipe] of [
    ['boot', '', recipes.boot],
    ['images', 'minimal-', recipes.minimal],
    ['images', 'base-', recipes.base],
    ['parts', 'kernel-', recipes.kernel],
    ['parts', 'sshd-', recipes.sshd],
    ['parts', 'minimal-root-', recipes.minimalRoot],
  ] as const) {
    const keep = await findArtifact(store, recipe)
    if (keep) await prune(store, folder, prefix, keep)
  }
}

/** @returns whether all of `artifacts` are there; the links then lead to them */
async function pointAtFinished(
  store: ArtifactStore,
  recipes: Recipes,
  artifacts: readonly Artifact[],
): Promise<boolean> {
  const found = await Promise.all(artifacts.map((name) => findArtifact(store, recipes[name])))
  if (found.some((path) => path === undefined)) return false
  for (const [index, name] of artifacts.entries()) await point(store, name, found[index] ?? '')
  return true
}

async function point(store: ArtifactStore, name: Artifact, path: string): Promise<void> {
  const target = basename(path)
  await replaceLink(name === 'boot' ? join(store.path, 'boot/current') : join(store.path, 'images', name), target)
}

async function makeRecipes(initPath: string): Promise<Recipes> {
  const scripts = await imageScripts()
  const minimalRoot = { packages: MINIMAL_RECIPE, script: scripts.minimal }
  const part = (name: string, inputs: unknown): Recipe => ({
    key: `part-${name}`,
    folder: 'parts',
    prefix: `${name}-`,
    inputs,
  })
  const image = (name: string, inputs: unknown): Recipe => ({
    key: `image-${name}`,
    folder: 'images',
    prefix: `${name}-`,
    inputs,
  })
  const boot = { boot: BOOT_RECIPE, kernel: KERNEL_RECIPE, sshd: SSHD_RECIPE, init: await hashInitSources(initPath) }
  const base = { minimalRoot, packages: BASE_RECIPE, script: scripts.base, node: process.version, disk: DISK_RECIPE }
  return {
    kernel: part('kernel', KERNEL_RECIPE),
    sshd: part('sshd', SSHD_RECIPE),
    boot: { key: 'boot', folder: 'boot', prefix: '', inputs: boot },
    minimalRoot: part('minimal-root', minimalRoot),
    minimal: image('minimal', { minimalRoot, disk: DISK_RECIPE }),
    base: image('base', base),
  }
}

async function build(store: ArtifactStore, recipes: Recipes, options: EnsureOptions): Promise<void> {
  const { progress, refresh } = options
  const wants = (name: Artifact): boolean => options.artifacts.includes(name)
  const staged = async <T>(title: string, task: (stage: Stage) => Promise<T>): Promise<T> => {
    const stage = progress.stage(title)
    try {
      const result = await task(stage)
      stage.done()
      return result
    } catch (cause) {
      stage.failed()
      throw new InstallError(`${title} could not be made`, { cause })
    }
  }
  const ensure = async (recipe: Recipe, make: () => Promise<string>): Promise<string> =>
    (refresh ? undefined : await findArtifact(store, recipe)) ?? make()
  // Kept when the build fails or is killed: what was downloaded need not be downloaded again.
  const aptPath = join(store.path, '.apt')
  let apt: Promise<GuestApt> | undefined
  const guestApt = (): Promise<GuestApt> => {
    apt ??= staged('package lists', (stage) => openGuestApt(aptPath, stage))
    return apt
  }
  let minimalRoot: Promise<string> | undefined
  const ensureMinimalRoot = (): Promise<string> => {
    minimalRoot ??= ensure(recipes.minimalRoot, async () => {
      const lists = await guestApt()
      return staged('minimal system', (stage) =>
        buildArtifact(store, recipes.minimalRoot, {
          resolve: async () => ({ files: (await closureOf(lists, MINIMAL_CLOSURE)).files }),
          make: (directory, work) => buildMinimalRoot(directory, work, lists, stage),
        }),
      )
    })
    return minimalRoot
  }

  progress.next([
    ...(wants('boot') ? ['exe-init', 'kernel', 'sshd', 'tools disk'] : []),
    ...(wants('minimal') ? ['image minimal'] : []),
    ...(wants('base') ? ['image base'] : []),
  ])
  const tasks: Promise<unknown>[] = []
  if (wants('boot')) tasks.push(buildBoot())
  if (wants('minimal')) tasks.push(buildMinimal())
  if (wants('base')) tasks.push(buildBase())
  // All are waited for: what one has finished stays, though another failed.
  const results = await Promise.allSettled(tasks)
  const failures = results.flatMap((result) => (result.status === 'rejected' ? [result.reason] : []))
  if (failures.length === 1) throw failures[0]
  if (failures.length > 1) throw new AggregateError(failures, 'several artifacts could not be made')
  await remove(aptPath)

  async function buildBoot(): Promise<void> {
    const compiled = staged('exe-init', (stage) => compileInit(options.initPath, stage))
    const kernelPart = ensure(recipes.kernel, async () => {
      const lists = await guestApt()
      return staged('kernel', async (stage) => {
        const resolved = await resolveKernel(lists)
        return buildArtifact(store, recipes.kernel, {
          resolve: async () => resolved,
          make: (directory, work) => unpackKernel(directory, work, resolved.name, lists, stage),
        })
      })
    })
    const sshdPart = ensure(recipes.sshd, async () => {
      const lists = await guestApt()
      return staged('sshd', async (stage) => {
        const resolved = await resolveSshd(lists)
        return buildArtifact(store, recipes.sshd, {
          resolve: async () => resolved,
          make: (directory, work) => buildSshd(directory, work, resolved.openssh, lists, stage),
        })
      })
    })
    await Promise.allSettled([compiled, kernelPart, sshdPart])
    const parts = { kernelPart: await kernelPart, sshdPart: await sshdPart, init: await compiled }
    const path = await staged('tools disk', (stage) =>
      buildArtifact(store, recipes.boot, {
        resolve: async () => ({
          kernel: basename(parts.kernelPart),
          sshd: basename(parts.sshdPart),
          ...(await resolveInit(parts.init)),
        }),
        make: async (directory, work) => {
          await assembleBoot(directory, work, parts, stage)
          return kernelRelease(parts.kernelPart)
        },
        describe: (hash, _resolved, release) => ({
          file: 'boot.json',
          content: { hash, kernelRelease: release, createdAt: new Date().toISOString() },
        }),
      }),
    )
    await point(store, 'boot', path)
  }

  async function buildMinimal(): Promise<void> {
    const path = await ensure(recipes.minimal, async () => {
      const part = await ensureMinimalRoot()
      return staged('image minimal', () =>
        buildArtifact(store, recipes.minimal, {
          resolve: async () => ({ part: basename(part) }),
          make: async (directory, work) => {
            await unpackRoot(join(part, 'root.tar'), join(work, 'root'))
            return makeDisk(join(directory, 'root.raw'), join(work, 'root'))
          },
          describe: (hash, _resolved, sizeBytes) =>
            describeImage('minimal', hash, Number(sizeBytes), 'Debian 13 with systemd, sudo and little else'),
        }),
      )
    })
    await point(store, 'minimal', path)
  }

  async function buildBase(): Promise<void> {
    const path = await ensure(recipes.base, async () => {
      const lists = await guestApt()
      // Fails where it is awaited; until then nobody listens, which must not end the process.
      const packages = staged('packages of base', (stage) => prefetch(lists, BASE_CLOSURE, stage))
      packages.catch(() => undefined)
      const part = await ensureMinimalRoot()
      await packages
      return staged('image base', (stage) =>
        buildArtifact(store, recipes.base, {
          resolve: async () => ({ part: basename(part), files: (await closureOf(lists, BASE_CLOSURE)).files }),
          make: async (directory, work) => {
            const npmPath = join(work, 'npm')
            await fetchNpm(npmPath)
            const root = join(work, 'root')
            await buildBaseRoot(
              root,
              {
                minimalTar: join(part, 'root.tar'),
                node: process.execPath,
                npmPath,
                logPath: join(store.path, 'base.log'),
              },
              lists,
              stage,
            )
            stage.detail('disk')
            return makeDisk(join(directory, 'root.raw'), root)
          },
          describe: (hash, _resolved, sizeBytes) =>
            describeImage(
              'base',
              hash,
              Number(sizeBytes),
              'Debian 13 for developers: git, build tools, Python, Node 24, Docker',
            ),
        }),
      )
    })
    await point(store, 'base', path)
  }
}

function describeImage(
  name: string,
  hash: string,
  sizeBytes: number,
  description: string,
): { file: string; content: unknown } {
  return { file: 'image.json', content: { name, hash, sizeBytes, loginUser: LOGIN_USER, init: true, description } }
}
