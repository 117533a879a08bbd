import { z } from 'zod'
import { ImageError, printable } from './errors.ts'
import { limits } from './limits.ts'
import { isDigest } from './reference.ts'

/**
 * What a registry says of an image: a manifest, or a list of them by platform, and the image's configuration.
 * @see https://github.com/opencontainers/image-spec, manifest.md, image-index.md, config.md
 * @see https://distribution.github.io/distribution/spec/manifest-v2-2/
 */
const indexTypes = [
  'application/vnd.oci.image.index.v1+json',
  'application/vnd.docker.distribution.manifest.list.v2+json',
]
const manifestTypes = [
  'application/vnd.oci.image.manifest.v1+json',
  'application/vnd.docker.distribution.manifest.v2+json',
]
export const manifestAccept = [...manifestTypes, ...indexTypes].join(', ')

export type Compression = 'none' | 'gzip' | 'zstd'
const layerTypes = new Map<string, Compression>([
  ['application/vnd.oci.image.layer.v1.tar', 'none'],
  ['application/vnd.oci.image.layer.v1.tar+gzip', 'gzip'],
  ['application/vnd.oci.image.layer.v1.tar+zstd', 'zstd'],
  ['application/vnd.oci.image.layer.nondistributable.v1.tar', 'none'],
  ['application/vnd.oci.image.layer.nondistributable.v1.tar+gzip', 'gzip'],
  ['application/vnd.oci.image.layer.nondistributable.v1.tar+zstd', 'zstd'],
  ['application/vnd.docker.image.rootfs.diff.tar', 'none'],
  ['application/vnd.docker.image.rootfs.diff.tar.gzip', 'gzip'],
  ['application/vnd.docker.image.rootfs.diff.tar.zstd', 'zstd'],
  ['application/vnd.docker.image.rootfs.foreign.diff.tar.gzip', 'gzip'],
])
const configTypes = ['application/vnd.oci.image.config.v1+json', 'application/vnd.docker.container.image.v1+json']

export const platform = { os: 'linux', architecture: 'amd64' } as const

export type Blob = { readonly digest: string; readonly sizeBytes: number }
export type Layer = Blob & { readonly compression: Compression }
export type Manifest = { readonly kind: 'manifest'; readonly config: Blob; readonly layers: readonly Layer[] }
export type Index = { readonly kind: 'index'; readonly chosen: Blob }

const digest = z.string().refine(isDigest)
const size = z.number().int().nonnegative()
const descriptor = z.object({ mediaType: z.string(), digest, size })
const manifestSchema = z.object({
  mediaType: z.string().optional(),
  schemaVersion: z.literal(2),
  config: descriptor,
  layers: z.array(descriptor),
})
const indexSchema = z.object({
  mediaType: z.string().optional(),
  schemaVersion: z.literal(2),
  manifests: z.array(
    descriptor.extend({
      platform: z.object({ architecture: z.string(), os: z.string(), variant: z.string().optional() }).optional(),
    }),
  ),
})

/**
 * @param contentType as the registry gave it; what the document says of itself comes first
 * @throws ImageError
 */
export function parseManifest(bytes: Buffer, contentType: string, name: string): Manifest | Index {
  const document = parseJson(bytes, name)
  const own = z.object({ mediaType: z.string() }).safeParse(document).data?.mediaType
  const type = own ?? contentType.replace(/;.*$/, '').trim()
  if (indexTypes.includes(type)) return chooseManifest(checked(indexSchema, document, name), name)
  if (manifestTypes.includes(type)) return toManifest(checked(manifestSchema, document, name), name)
  if (/manifest\.v1\+(json|prettyjws)$/.test(type))
    throw new ImageError('image.invalid', `${name} is in a format that was given up in 2017: it must be pushed again`)
  throw new ImageError('image.invalid', `${name} is not a container image: ${printable(type || 'of no type')}`)
}

function chooseManifest({ manifests }: z.infer<typeof indexSchema>, name: string): Index {
  const named = manifests.filter(({ mediaType }) => manifestTypes.includes(mediaType))
  const found = named
    .filter(({ platform: p }) => p?.os === platform.os && p.architecture === platform.architecture)
    // Variants (v2, v3) want more of a processor than every one has.
    .reduce<(typeof named)[number] | undefined>(
      (best, one) => (best && variantOf(best) <= variantOf(one) ? best : one),
      undefined,
    )
  // An index of one image may leave the platform to the image's own configuration.
  const [only] = named
  const chosen = found ?? (named.length === 1 && only && only.platform === undefined ? only : undefined)
  if (chosen) return { kind: 'index', chosen: { digest: chosen.digest, sizeBytes: chosen.size } }
  const others = named.flatMap(({ platform: p }) => (p && p.os !== 'unknown' ? [`${p.os}/${p.architecture}`] : []))
  throw noPlatform(name, others)
}

function variantOf({ platform: p }: z.infer<typeof indexSchema>['manifests'][number]): string {
  return p?.variant ?? ''
}

function noPlatform(name: string, others: readonly string[]): ImageError {
  const there = [...new Set(others)].slice(0, 8).map((text) => printable(text, 30))
  const list = there.length > 0 ? `, only for ${there.join(', ')}` : ''
  return new ImageError('image.platform', `${name} is not made for ${platform.os}/${platform.architecture}${list}`)
}

function toManifest(document: z.infer<typeof manifestSchema>, name: string): Manifest {
  const { config, layers } = document
  if (!configTypes.includes(config.mediaType)) {
    const what = printable(config.mediaType, 80)
    throw new ImageError('image.invalid', `${name} holds something else than a container image: ${what}`)
  }
  if (config.size > limits.configBytes)
    throw new ImageError('image.too_large', `The configuration of ${name} is too large`)
  if (layers.length === 0) throw new ImageError('image.invalid', `${name} has no layers: there is nothing in it`)
  if (layers.length > limits.layers)
    throw new ImageError('image.too_large', `${name} has ${layers.length} layers; the most is ${limits.layers}`)
  return {
    kind: 'manifest',
    config: { digest: config.digest, sizeBytes: config.size },
    layers: layers.map((layer) => {
      const compression = layerTypes.get(layer.mediaType)
      if (compression === undefined)
        throw new ImageError(
          'image.invalid',
          `${name} has a layer of a kind unknown here: ${printable(layer.mediaType)}`,
        )
      return { digest: layer.digest, sizeBytes: layer.size, compression }
    }),
  }
}

const strings = z.array(z.string()).nullish()
const configSchema = z.object({
  architecture: z.string(),
  os: z.string(),
  rootfs: z.object({ type: z.literal('layers'), diff_ids: z.array(digest) }),
  config: z
    .object({
      User: z.string().nullish(),
      Env: strings,
      Entrypoint: strings,
      Cmd: strings,
      WorkingDir: z.string().nullish(),
      ExposedPorts: z.record(z.string(), z.unknown()).nullish(),
      Labels: z.record(z.string(), z.string()).nullish(),
    })
    .nullish(),
})

/** What an image says of itself, as far as a machine of it heeds it. */
export type ImageConfig = {
  /** digests of the layers, unpacked */
  readonly diffIds: readonly string[]
  /** `name`, `name:group`, `uid`, `uid:gid`, or nothing */
  readonly user: string
  readonly environment: readonly string[]
  /** what a container of it runs */
  readonly arguments: readonly string[]
  readonly workingDirectory: string
  /** TCP ports, ascending */
  readonly ports: readonly number[]
  readonly labels: Readonly<Record<string, string>>
}

/** @throws ImageError */
export function parseConfig(bytes: Buffer, layers: number, name: string): ImageConfig {
  const document = checked(configSchema, parseJson(bytes, name), name)
  if (document.os !== platform.os || document.architecture !== platform.architecture)
    throw noPlatform(name, [`${document.os}/${document.architecture}`])
  if (document.rootfs.diff_ids.length !== layers)
    throw new ImageError(
      'image.invalid',
      `${name} has ${layers} layers and says it has ${document.rootfs.diff_ids.length}`,
    )
  const config = document.config ?? {}
  const ports = Object.keys(config.ExposedPorts ?? {}).flatMap((text) => {
    const port = Number(/^(\d{1,5})(?:\/tcp)?$/.exec(text)?.[1])
    return port >= 1 && port <= 65535 ? [port] : []
  })
  return {
    diffIds: document.rootfs.diff_ids,
    user: config.User ?? '',
    environment: config.Env ?? [],
    arguments: [...(config.Entrypoint ?? []), ...(config.Cmd ?? [])],
    workingDirectory: config.WorkingDir ?? '',
    ports: ports.sort((a, b) => a - b),
    labels: config.Labels ?? {},
  }
}

function parseJson(bytes: Buffer, name: string): unknown {
  try {
    return JSON.parse(bytes.toString('utf8'))
  } catch (error) {
    throw new ImageError('image.invalid', `What the registry says of ${name} is no JSON`, { cause: error })
  }
}

function checked<T>(schema: z.ZodType<T>, document: unknown, name: string): T {
  const { data, error } = schema.safeParse(document)
  if (data !== undefined) return data
  throw new ImageError('image.invalid', `What the registry says of ${name} is not a container image`, { cause: error })
}
