import { describe, expect, test } from 'vitest'
import { parseConfig, parseManifest } from './documents.ts'
import { limits } from './limits.ts'
import { OCI } from './testing/registry.ts'

/** What a registry says, before anything of an image is fetched. */

const digest = (n: number) => `sha256:${String(n).padStart(64, '0')}`
const bytes = (document: unknown) => Buffer.from(JSON.stringify(document))

function index(...platforms: (string | undefined)[]) {
  const manifests = platforms.map((text, n) => {
    const [os, architecture, variant] = text?.split('/') ?? []
    const platform = text === undefined ? {} : { platform: { os, architecture, ...(variant ? { variant } : {}) } }
    return { mediaType: `${OCI}.manifest.v1+json`, digest: digest(n), size: 7, ...platform }
  })
  return parseManifest(bytes({ schemaVersion: 2, mediaType: `${OCI}.index.v1+json`, manifests }), '', 'app')
}

describe('of a list of platforms', () => {
  test.each<[(string | undefined)[], number]>([
    [['linux/arm64/v8', 'windows/amd64', 'linux/amd64', 'linux/386'], 2],
    [['linux/amd64/v3', 'linux/amd64/v2', 'linux/amd64'], 2],
    [['linux/amd64/v3', 'linux/amd64/v2'], 1],
    [['linux/amd64', 'linux/amd64'], 0],
    // What else is attached to an image, such as how it was built.
    [['unknown/unknown', 'linux/amd64', 'unknown/unknown'], 1],
    [[undefined], 0],
  ])('%j, the one is taken that runs here: number %d', (platforms, chosen) => {
    expect(index(...platforms)).toEqual({ kind: 'index', chosen: { digest: digest(chosen), sizeBytes: 7 } })
  })

  test.each<[(string | undefined)[], RegExp]>([
    [
      ['windows/amd64', 'linux/arm64/v8', 'linux/arm64'],
      /^app is not made for linux\/amd64, only for windows\/amd64, linux\/arm64$/,
    ],
    [['unknown/unknown'], /^app is not made for linux\/amd64$/],
    [[undefined, undefined], /^app is not made for linux\/amd64$/],
    [[], /^app is not made for linux\/amd64$/],
    [['\u001b[2J/x'], /^app is not made for linux\/amd64, only for \?\[2J\/x$/],
  ])('%j, none runs here, which is told', (platforms, message) => {
    expect(() => index(...platforms)).toThrow(message)
  })
})

const blob = (kind: string, size = 7) => ({ mediaType: `${OCI}.${kind}`, digest: digest(1), size })
const layer = blob('layer.v1.tar+gzip')
const manifest = (changes: Record<string, unknown>) =>
  parseManifest(
    bytes({ schemaVersion: 2, config: blob('config.v1+json'), layers: [layer], ...changes }),
    `${OCI}.manifest.v1+json; charset=utf-8`,
    'app',
  )

test('a manifest that does not say what it is, is what the registry calls it', () => {
  expect(manifest({})).toMatchObject({ kind: 'manifest', layers: [{ compression: 'gzip', sizeBytes: 7 }] })
})

test.each<[string, Record<string, unknown>, string, RegExp]>([
  [
    'too many layers',
    { layers: Array.from({ length: limits.layers + 1 }, () => layer) },
    'image.too_large',
    /has 257 layers; the most is 256$/,
  ],
  [
    'a large configuration',
    { config: blob('config.v1+json', limits.configBytes + 1) },
    'image.too_large',
    /configuration of app is too large$/,
  ],
  ['no layers', { layers: [] }, 'image.invalid', /has no layers/],
  [
    'encrypted layers',
    { layers: [blob('layer.v1.tar+gzip+encrypted')] },
    'image.invalid',
    /a layer of a kind unknown here/,
  ],
  [
    'something else than an image',
    { config: { ...blob('x'), mediaType: 'application/vnd.cncf.helm.config.v1+json' } },
    'image.invalid',
    /something else than a container image: .*helm/,
  ],
  ['a size below nothing', { layers: [{ ...layer, size: -1 }] }, 'image.invalid', /is not a container image$/],
  [
    'a digest of another kind',
    { layers: [{ ...layer, digest: `md5:${'0'.repeat(32)}` }] },
    'image.invalid',
    /is not a container image$/,
  ],
  [
    'a digest that is a path',
    { config: { ...blob('config.v1+json'), digest: 'sha256:../../x' } },
    'image.invalid',
    /is not a container image$/,
  ],
  [
    'the format of 2017',
    { mediaType: 'application/vnd.docker.distribution.manifest.v1+prettyjws' },
    'image.invalid',
    /must be pushed again$/,
  ],
  ['a kind of nobody’s', { mediaType: 'text/html' }, 'image.invalid', /is not a container image: text\/html$/],
])('a manifest of %s is refused in a sentence', (_, changes, code, message) => {
  expect(() => manifest(changes)).toThrow(expect.objectContaining({ code, message: expect.stringMatching(message) }))
})

test.each<[string, unknown, RegExp]>([
  [
    'another platform',
    { architecture: 'arm64', os: 'linux', rootfs: { type: 'layers', diff_ids: [] } },
    /only for linux\/arm64$/,
  ],
  [
    'other layers than its manifest',
    { architecture: 'amd64', os: 'linux', rootfs: { type: 'layers', diff_ids: [digest(1)] } },
    /has 0 layers and says it has 1$/,
  ],
  ['nothing', [], /is not a container image$/],
])('a configuration of %s is refused in a sentence', (_, document, message) => {
  expect(() => parseConfig(bytes(document), 0, 'app')).toThrow(message)
})

test('what is no JSON is told as that', () => {
  expect(() => parseManifest(Buffer.from('<html>'), 'text/html', 'app')).toThrow(/is no JSON$/)
})
