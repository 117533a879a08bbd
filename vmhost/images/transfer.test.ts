import { randomBytes } from 'node:crypto'
import { lstatSync, readdirSync, utimesSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest'
import { ImageLab } from './testing/lab.ts'
import { rawTar } from './testing/layers.ts'
import { badNetwork, type Fault, TestRegistry } from './testing/registry.ts'

/** What registries, their token services and the ways to them do while an image is fetched. */

const MiB = 2 ** 20
const patience = { timeout: 60_000 }
let registry: TestRegistry
let lab: ImageLab

beforeAll(async () => {
  registry = await TestRegistry.start()
})
afterAll(() => registry[Symbol.asyncDispose]())
beforeEach(async () => {
  lab = await ImageLab.make([])
})
afterEach(() => {
  const left = lab.work()
  lab[Symbol.dispose]()
  expect(left).toEqual([])
})

const layer = (bytes = 1000) => rawTar([{ path: `file-${bytes}`, content: randomBytes(bytes) }])
const isBlob = (path: string) => path.includes('/blobs/')

test('a registry that is busy or broken for a moment is asked again, in the middle of a layer too', async () => {
  await registry.push('busy', 'latest', { layers: [layer(2 * MiB)], compression: 'none' })
  const ranges: unknown[] = []
  // Of the manifest's answers, and of the layer's after that of the configuration.
  const ofManifest: (Fault | undefined)[] = [{ status: 503 }, { status: 429, headers: { 'retry-after': '1' } }]
  const ofLayer: (Fault | undefined)[] = [
    { status: 502 },
    { cutAfterBytes: 900_000 },
    { status: 429, headers: { 'retry-after': '1' } },
    { status: 500 },
    { cutAfterBytes: 300_000 },
  ]
  let hasConfig = false
  await using bad = await badNetwork(registry, (path, headers) => {
    if (!isBlob(path)) return ofManifest.shift()
    if (!hasConfig) {
      hasConfig = true
      return undefined
    }
    const fault = ofLayer.shift()
    if (fault?.status === undefined) ranges.push(headers.range)
    return fault
  })
  lab.list([bad.host])
  const image = await lab.ensure(`${bad.host}/busy`)
  lab.inside(image, (root) => expect(lstatSync(join(root, `file-${2 * MiB}`)).size).toBe(2 * MiB))
  expect([ofManifest, ofLayer]).toEqual([[], []])
  // What had come was not sent again.
  const offsets = ranges.map((range) => Number(/^bytes=(\d+)-$/.exec(String(range))?.[1] ?? 0))
  expect(offsets.length).toBe(3)
  expect(offsets[0]).toBe(0)
  expect(offsets[1]).toBeGreaterThan(300_000)
  expect(offsets[2]).toBeGreaterThan(offsets[1] ?? 0)
})

test('a token that runs out on the way is renewed, once for all layers that are on their way', async () => {
  await registry.push('tokens', 'latest', { layers: [layer(1), layer(2), layer(3), layer(4)] })
  let valid = 1
  let issued = 0
  let blobs = 0
  let scope: string | null = null
  await using bad = await badNetwork(registry, (path, headers) => {
    if (path.startsWith('/token')) {
      issued++
      scope = new URL(path, 'http://x').searchParams.get('scope')
      return { status: 200, body: JSON.stringify({ access_token: `t${valid}`, expires_in: 60 }) }
    }
    if (headers.authorization !== `Bearer t${valid}`) {
      const challenge = `Bearer realm="http://${bad.host}/token?service=s",scope="repository:tokens:pull"`
      return { status: 401, headers: { 'www-authenticate': challenge } }
    }
    // It lasts until the configuration is there.
    if (isBlob(path) && ++blobs === 1) valid = 2
    return undefined
  })
  lab.list([bad.host])
  await lab.ensure(`${bad.host}/tokens`)
  expect([valid, issued, scope]).toEqual([2, 2, 'repository:tokens:pull'])
})

test('layers that lie elsewhere are fetched there, and what opens the registry is not shown to whoever has them', async () => {
  await registry.push('moved', 'latest', { layers: [layer(MiB), layer(MiB + 1)], compression: 'none' })
  const shown: unknown[] = []
  const ranges: unknown[] = []
  await using elsewhere = await badNetwork(registry, (_, headers) => {
    shown.push(headers.authorization)
    ranges.push(headers.range)
    return ranges.length === 2 ? { cutAfterBytes: 100_000 } : undefined
  })
  await using front = await badNetwork(registry, (path, headers) => {
    if (!headers.authorization) return { status: 401, headers: { 'www-authenticate': 'Basic realm="x"' } }
    if (!isBlob(path)) return undefined
    // First by a way within itself.
    const location = path.includes('?at') ? `http://${elsewhere.host}${path}` : `${path}?at=1`
    return { status: 307, headers: { location } }
  })
  const login = { username: 'op', password: 'pw' }
  lab.list([front.host, elsewhere.host], { [front.host]: login, [elsewhere.host]: login })
  await lab.ensure(`${front.host}/moved`)
  expect(shown.length).toBe(4)
  expect(new Set(shown)).toEqual(new Set([undefined]))
  expect(ranges.filter((range) => range !== undefined)).toEqual([expect.stringMatching(/^bytes=\d+-$/)])
})

test('a registry that redirects without an end is told as that', async () => {
  await using bad = await badNetwork(registry, (path) => ({ status: 302, headers: { location: `${path}x` } }))
  lab.list([bad.host])
  await expect(lab.ensure(`${bad.host}/round`)).rejects.toMatchObject({
    code: 'image.unreachable',
    message: expect.stringMatching(/cannot be reached: it redirects without an end$/),
  })
})

test('a layer that never comes whole, or does not end where it should, is given up with a sentence', async () => {
  await registry.push('cut', 'latest', { layers: [layer(MiB)], compression: 'none' })
  let hasConfig = false
  let fault: Fault = { cutAfterBytes: 300_000, ignoreRange: true }
  await using bad = await badNetwork(registry, (path) => {
    if (!isBlob(path)) {
      hasConfig = false
      return undefined
    }
    if (hasConfig) return fault
    hasConfig = true
    return undefined
  })
  lab.list([bad.host])
  await expect(lab.ensure(`${bad.host}/cut`)).rejects.toMatchObject({
    code: 'image.unreachable',
    message: expect.stringMatching(/^The registry breaks off a layer of 1\.0 MiB after [\d.]+ KiB, again and again$/),
  })
  fault = { append: Buffer.alloc(100_000), ignoreRange: true }
  await expect(lab.ensure(`${bad.host}/cut`)).rejects.toMatchObject({
    code: 'image.digest',
    message: expect.stringMatching(/^The registry sends more than the 1\.0 MiB of the layer sha256:/),
  })
})

test('an account whose registry is slow keeps nobody else waiting', async () => {
  await registry.push('ours', 'latest', { layers: [layer(3)] })
  const gate = Promise.withResolvers<void>()
  await using slow = await badNetwork(registry, async () => {
    await gate.promise
    return undefined
  })
  lab.list([slow.host, ...registry.hosts])
  const never = new AbortController()
  const theirs = [1, 2, 3, 4].map((n) => lab.ensure(`${slow.host}/theirs:${n}`, { signal: never.signal }))
  const ended = Promise.allSettled(theirs)
  try {
    expect((await lab.ensure(`${registry.host}/ours`, { accountId: 2 })).path).toMatch(/root\.raw$/)
  } finally {
    never.abort()
    gate.resolve()
    await ended
    await expect.poll(() => lab.work(), patience).toEqual([])
  }
})

test('what is removed for being old or too much is never what an image is being made of', async () => {
  await registry.push('held', 'latest', { layers: [layer(1), layer(2)] })
  const gate = Promise.withResolvers<void>()
  let blobs = 0
  await using slow = await badNetwork(registry, async (path) => {
    if (isBlob(path) && ++blobs > 2) await gate.promise
    return undefined
  })
  lab.list([slow.host])
  const made = lab.ensure(`${slow.host}/held`)
  try {
    await expect.poll(() => lab.blobs().filter((name) => !name.endsWith('.part')).length, patience).toBe(1)
    const longAgo = new Date(Date.now() - 30 * 86_400_000)
    for (const name of lab.blobs()) utimesSync(join(lab.home, 'oci/blobs', name), longAgo, longAgo)
    await lab.images.sweep(new Set())
    expect(await lab.images.giveUp(new Set())).toBe(false)
  } finally {
    gate.resolve()
  }
  const { path } = await made
  expect(readdirSync(join(path, '..')).sort()).toEqual(['image.json', 'root.raw'])
})
