import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdir, mkdtemp, readdir, readFile, readlink, rm, utimes, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import { createInterface } from 'node:readline'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { buildArtifact, clearWork, findArtifact, hashOf, openStore, prune, type Recipe, replaceLink } from './store.ts'

let path = ''
const recipe: Recipe = { key: 'image-x', folder: 'images', prefix: 'x-', inputs: { packages: ['a', 'b'] } }

beforeEach(async () => {
  path = await mkdtemp(join(tmpdir(), 'berth-store-'))
})
afterEach(async () => {
  await rm(path, { recursive: true, force: true })
})

function buildOf(versions: string, made: string[]) {
  return {
    resolve: async () => ({ versions }),
    make: async (directory: string) => {
      made.push(versions)
      await writeFile(join(directory, 'root.raw'), versions)
      return versions.length
    },
    describe: (hash: string, _resolved: unknown, sizeBytes: unknown) => ({
      file: 'image.json',
      content: { hash, sizeBytes },
    }),
  }
}

test('what is built is found again by its recipe, complete and named by its hash', async () => {
  const store = openStore(path)
  expect(await findArtifact(store, recipe)).toBeUndefined()
  const built = await buildArtifact(store, recipe, buildOf('1.0', []))
  expect(await findArtifact(store, recipe)).toBe(built)
  const description = JSON.parse(await readFile(join(built, 'image.json'), 'utf8'))
  expect(description).toEqual({ hash: basename(built).slice('x-'.length), sizeBytes: 3 })
  expect(await readdir(join(path, '.work'))).toEqual([])
})

test('another recipe is another artifact', async () => {
  const store = openStore(path)
  const built = await buildArtifact(store, recipe, buildOf('1.0', []))
  const other = { ...recipe, inputs: { packages: ['a', 'c'] } }
  expect(await findArtifact(store, other)).toBeUndefined()
  expect(await buildArtifact(store, other, buildOf('1.0', []))).not.toBe(built)
})

test('asked again with the same versions out there, nothing is made; with newer ones, it is', async () => {
  const store = openStore(path)
  const made: string[] = []
  const first = await buildArtifact(store, recipe, buildOf('1.0', made))
  expect(await buildArtifact(store, recipe, buildOf('1.0', made))).toBe(first)
  const second = await buildArtifact(store, recipe, buildOf('1.1', made))
  expect(made).toEqual(['1.0', '1.1'])
  expect(await findArtifact(store, recipe)).toBe(second)
})

test('a build that fails leaves nothing that could be taken for an artifact', async () => {
  const store = openStore(path)
  const failing = {
    resolve: async () => ({}),
    make: async (directory: string) => {
      await writeFile(join(directory, 'root.raw'), 'half')
      throw new Error('no space left on device')
    },
  }
  await expect(buildArtifact(store, recipe, failing)).rejects.toThrow('no space left')
  expect(await findArtifact(store, recipe)).toBeUndefined()
  expect(await readdir(path)).toEqual(['.work'])
  expect(await readdir(join(path, '.work'))).toEqual([])
})

test('a builder killed in the middle leaves no artifact and no lock; the next one clears up and builds', async () => {
  const program = `
    import { appendFileSync } from 'node:fs'
    import { buildArtifact, openStore } from ${JSON.stringify(new URL('store.ts', import.meta.url).href)}
    const store = openStore(${JSON.stringify(path)})
    using lock = await store.lock()
    await buildArtifact(store, ${JSON.stringify(recipe)}, {
      resolve: async () => ({ versions: '1.0' }),
      make: async (directory) => {
        appendFileSync(directory + '/root.raw', 'half')
        console.log('half')
        await new Promise((resolve) => setTimeout(resolve, 60_000))
      },
    })`
  const builder = spawn(process.execPath, ['--input-type=module', '-e', program], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  await once(createInterface({ input: builder.stdout }), 'line')
  builder.kill('SIGKILL')
  await once(builder, 'exit')

  const store = openStore(path)
  expect(await findArtifact(store, recipe)).toBeUndefined()
  expect((await readdir(join(path, '.work'))).length).toBe(1)
  const waits: string[] = []
  using _lock = await store.lock(() => waits.push('waited'))
  expect(waits).toEqual([])
  await clearWork(store)
  const built = await buildArtifact(store, recipe, buildOf('1.0', []))
  expect(await readFile(join(built, 'root.raw'), 'utf8')).toBe('1.0')
})

test('a second builder waits until the first is done', async () => {
  const store = openStore(path)
  const first = await store.lock()
  const waits: string[] = []
  const order: string[] = []
  const { promise: waiting, resolve: sayWaiting } = Promise.withResolvers<void>()
  const second = store
    .lock(() => {
      waits.push('waited')
      sayWaiting()
    })
    .then((lock) => {
      order.push('second')
      lock[Symbol.dispose]()
    })
  await waiting
  order.push('first')
  first[Symbol.dispose]()
  await second
  expect({ waits, order }).toEqual({ waits: ['waited'], order: ['first', 'second'] })
})

test('a link is replaced in one step and can be replaced again', async () => {
  const link = join(path, 'boot/current')
  await replaceLink(link, 'one')
  await replaceLink(link, 'two')
  await replaceLink(link, 'two')
  expect(await readlink(link)).toBe('two')
  expect(await readdir(join(path, 'boot'))).toEqual(['current'])
})

test('pruning keeps the one in use, what is younger than a day, and what it did not make', async () => {
  const store = openStore(path)
  const [kept, old, young] = [hashOf('kept'), hashOf('old'), hashOf('young')].map((hash) => `x-${hash}`)
  const images = join(path, 'images')
  for (const name of [kept, old, young, 'x', 'y-0123456789abcdef']) {
    await mkdir(join(images, name ?? ''), { recursive: true })
    const at = name === young ? new Date() : new Date(Date.now() - 48 * 3_600_000)
    await utimes(join(images, name ?? ''), at, at)
  }
  await prune(store, 'images', 'x-', join(images, kept ?? ''))
  expect((await readdir(images)).sort()).toEqual([kept, young, 'x', 'y-0123456789abcdef'].sort())
})

test('a recipe is the same whatever the order of its fields, and another with another value', () => {
  expect(hashOf({ a: 1, b: { c: [1, 2], d: 2 } })).toBe(hashOf({ b: { d: 2, c: [1, 2] }, a: 1 }))
  expect(hashOf({ list: ['a', 'b'] })).not.toBe(hashOf({ list: ['b', 'a'] }))
})
