import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { createHash, createSign, generateKeyPairSync } from 'node:crypto'
import { once } from 'node:events'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createServer, type RequestListener, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { gzipSync, zstdCompressSync } from 'node:zlib'

export const OCI = 'application/vnd.oci.image'
const DOCKER = 'application/vnd.docker'

export type Blob = { digest: string; bytes: Buffer; mediaType: string }
type Packing = 'none' | 'gzip' | 'zstd'
export type PushedImage = {
  layers: readonly Buffer[]
  /** of the image's configuration: `config` of it */
  config?: Record<string, unknown>
  /** of all layers, or of each */
  compression?: Packing | readonly Packing[]
  /** media types of Docker's instead of the OCI's */
  docker?: boolean
  architecture?: string
  /** to lie about */
  diffIds?: readonly string[]
}

export function sha256(bytes: Buffer): string {
  return `sha256:${createHash('sha256').update(bytes).digest('hex')}`
}

/** The real registry (Debian's docker-registry), on a port of the loopback and with a folder of its own. */
export class TestRegistry implements AsyncDisposable {
  readonly host: string
  readonly #folder: string
  readonly #child: ChildProcess
  readonly #authorization: string | undefined
  readonly #token: ((scope: string) => string) | undefined
  readonly #services: Server[] = []

  private constructor(
    host: string,
    folder: string,
    child: ChildProcess,
    authorization?: string,
    token?: (scope: string) => string,
  ) {
    this.host = host
    this.#folder = folder
    this.#child = child
    this.#authorization = authorization
    this.#token = token
  }

  /** @param login whom it answers to; `token`: asks for tokens of a service that gives them to whom it knows */
  static async start(login?: { username: string; password: string; token?: boolean }): Promise<TestRegistry> {
    const folder = mkdtempSync(join(tmpdir(), 'berth-registry-'))
    const port = await freePort()
    const services: Server[] = []
    let auth = ''
    let token: ((scope: string) => string) | undefined
    const basic = login && `Basic ${Buffer.from(`${login.username}:${login.password}`).toString('base64')}`
    if (login?.token) {
      const issuer = await tokenIssuer(folder)
      token = issuer.token
      const server = await listen((request, response) => {
        const scope = new URL(request.url ?? '', 'http://x').searchParams.get('scope') ?? ''
        // As public registries do it: anybody gets a token, and it opens what is public.
        const isOpen = scope.startsWith('repository:public/')
        if (request.headers.authorization !== undefined && request.headers.authorization !== basic) {
          response.writeHead(401).end()
          return
        }
        const granted = isOpen || request.headers.authorization === basic
        response.end(JSON.stringify({ token: issuer.token(granted ? scope : '') }))
      })
      services.push(server)
      const { port: realm } = server.address() as AddressInfo
      auth = `auth: {token: {realm: "http://localhost:${realm}/token", service: test, issuer: test, rootcertbundle: ${folder}/issuer.pem}}\n`
    } else if (login) {
      const hash = execFileSync('perl', [
        '-e',
        'print crypt($ARGV[0], q($2y$05$abcdefghijklmnopqrstuu))',
        login.password,
      ])
      writeFileSync(join(folder, 'htpasswd'), `${login.username}:${hash}\n`)
      auth = `auth: {htpasswd: {realm: test, path: ${folder}/htpasswd}}\n`
    }
    writeFileSync(
      join(folder, 'config.yml'),
      `version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: ${folder}/data}}\nhttp: {addr: "127.0.0.1:${port}", secret: test}\n${auth}`,
    )
    const child = spawn('docker-registry', ['serve', join(folder, 'config.yml')], {
      stdio: ['ignore', 'ignore', 'ignore'],
    })
    const registry = new TestRegistry(`localhost:${port}`, folder, child, login?.token ? undefined : basic, token)
    registry.#services.push(...services)
    await registry.#untilUp()
    return registry
  }

  /** Ports that the operator's file has to list. */
  get hosts(): string[] {
    return [this.host, ...this.#services.map((server) => `localhost:${(server.address() as AddressInfo).port}`)]
  }

  /** @returns the manifest's digest */
  async push(repository: string, tag: string, image: PushedImage): Promise<string> {
    const manifest = await this.pushParts(repository, image)
    return await this.pushManifest(repository, tag, manifest)
  }

  /** Everything but the manifest. */
  async pushParts(repository: string, image: PushedImage): Promise<Blob> {
    const { compression = 'gzip', docker = false } = image
    const layers = image.layers.map((bytes, number): Blob => {
      const packing = typeof compression === 'string' ? compression : (compression[number] ?? 'none')
      const suffix = packing === 'none' ? '' : docker ? `.${packing}` : `+${packing}`
      const packed = packing === 'gzip' ? gzipSync(bytes) : packing === 'zstd' ? zstdCompressSync(bytes) : bytes
      const type = docker ? `${DOCKER}.image.rootfs.diff.tar${suffix}` : `${OCI}.layer.v1.tar${suffix}`
      return { digest: sha256(packed), bytes: packed, mediaType: type }
    })
    const config = document(docker ? `${DOCKER}.container.image.v1+json` : `${OCI}.config.v1+json`, {
      architecture: image.architecture ?? 'amd64',
      os: 'linux',
      config: image.config ?? {},
      rootfs: { type: 'layers', diff_ids: image.diffIds ?? image.layers.map(sha256) },
    })
    for (const blob of [...layers, config]) await this.pushBlob(repository, blob)
    const mediaType = docker ? `${DOCKER}.distribution.manifest.v2+json` : `${OCI}.manifest.v1+json`
    return document(mediaType, {
      schemaVersion: 2,
      mediaType,
      config: descriptor(config),
      layers: layers.map(descriptor),
    })
  }

  /** A list of images by platform. @returns its digest */
  async pushIndex(
    repository: string,
    tag: string,
    images: { platform: string; manifest: Blob }[],
    docker = false,
  ): Promise<string> {
    for (const { manifest } of images) await this.pushManifest(repository, manifest.digest, manifest)
    const mediaType = docker ? `${DOCKER}.distribution.manifest.list.v2+json` : `${OCI}.index.v1+json`
    return await this.pushManifest(
      repository,
      tag,
      document(mediaType, {
        schemaVersion: 2,
        mediaType,
        manifests: images.map(({ platform, manifest }) => {
          const [os, architecture] = platform.split('/')
          return { ...descriptor(manifest), platform: { os, architecture } }
        }),
      }),
    )
  }

  async pushBlob(repository: string, { digest, bytes }: Pick<Blob, 'digest' | 'bytes'>): Promise<void> {
    const begun = await this.#send('POST', repository, `/v2/${repository}/blobs/uploads/`)
    const url = new URL(begun.headers.get('location') ?? '', `http://${this.host}`)
    url.searchParams.set('digest', digest)
    await this.#send('PUT', repository, url.pathname + url.search, bytes, 'application/octet-stream')
  }

  async pushManifest(repository: string, tag: string, { bytes, mediaType }: Blob): Promise<string> {
    await this.#send('PUT', repository, `/v2/${repository}/manifests/${tag}`, bytes, mediaType)
    return sha256(bytes)
  }

  /** The same registry, with what was pushed so far, at the same address in another network namespace. */
  async alsoIn(namespace: string): Promise<AsyncDisposable> {
    const args = ['netns', 'exec', namespace, 'docker-registry', 'serve', join(this.#folder, 'config.yml')]
    const child = spawn('ip', args, { stdio: 'ignore' })
    const answers = () => {
      try {
        execFileSync('ip', ['netns', 'exec', namespace, 'curl', '-s', '-o', '/dev/null', `http://${this.host}/v2/`])
        return true
      } catch {
        return false
      }
    }
    while (!answers()) {
      if (child.exitCode !== null) throw new Error('docker-registry ended')
      await sleep(50)
    }
    return {
      async [Symbol.asyncDispose]() {
        if (child.exitCode !== null || child.signalCode !== null) return
        const ended = once(child, 'exit')
        child.kill()
        await ended
      },
    }
  }

  /** Where the registry keeps a blob's bytes, to spoil them. */
  fileOf(digest: string): string {
    const hex = digest.slice('sha256:'.length)
    return join(this.#folder, 'data/docker/registry/v2/blobs/sha256', hex.slice(0, 2), hex, 'data')
  }

  async #send(method: string, repository: string, path: string, body?: Buffer, type?: string): Promise<Response> {
    const authorization = this.#token
      ? `Bearer ${this.#token(`repository:${repository}:pull,push`)}`
      : this.#authorization
    const response = await fetch(`http://${this.host}${path}`, {
      method,
      headers: { ...(authorization ? { authorization } : {}), ...(type ? { 'content-type': type } : {}) },
      ...(body ? { body: new Uint8Array(body) } : {}),
    })
    if (!response.ok) throw new Error(`${method} ${path}: ${response.status} ${await response.text()}`)
    return response
  }

  async #untilUp(): Promise<void> {
    for (let tries = 0; tries < 200; tries++) {
      if (this.#child.exitCode !== null) throw new Error('docker-registry ended')
      const answer = await fetch(`http://${this.host}/v2/`).catch(() => undefined)
      if (answer) return
      await sleep(50)
    }
    throw new Error('docker-registry does not answer')
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const ended = once(this.#child, 'exit')
    this.#child.kill()
    await ended
    for (const server of this.#services) server.close()
    rmSync(this.#folder, { recursive: true, force: true })
  }
}

export type Fault = {
  cutAfterBytes?: number
  /** more than there is */
  append?: Buffer
  ignoreRange?: boolean
  /** instead of the answer */
  status?: number
  headers?: Record<string, string>
  body?: string
}

/**
 * Stands before a registry and does to its answers what a bad network would.
 * @param spoil what comes of an answer to that path; `undefined`: nothing
 */
export async function badNetwork(
  registry: TestRegistry,
  spoil: (path: string, headers: Record<string, unknown>) => Fault | undefined | Promise<Fault | undefined>,
): Promise<{ host: string } & AsyncDisposable> {
  const server = await listen(async (request, response) => {
    const path = request.url ?? ''
    const fault = await spoil(path, request.headers)
    if (fault?.status !== undefined) {
      response.writeHead(fault.status, fault.headers).end(fault.body)
      return
    }
    const headers = new Headers()
    for (const name of ['accept', 'range', 'authorization'])
      if (request.headers[name] !== undefined && !(name === 'range' && fault?.ignoreRange))
        headers.set(name, String(request.headers[name]))
    const answer = await fetch(`http://${registry.host}${path}`, { headers, redirect: 'manual' })
    const bytes = Buffer.concat([Buffer.from(await answer.arrayBuffer()), fault?.append ?? Buffer.alloc(0)])
    const dropped = ['connection', 'transfer-encoding', ...(fault?.append ? ['content-length'] : [])]
    const kept = [...answer.headers].filter(([name]) => !dropped.includes(name))
    response.writeHead(answer.status, Object.fromEntries(kept))
    if (fault?.cutAfterBytes === undefined || bytes.length <= fault.cutAfterBytes) response.end(bytes)
    else response.write(bytes.subarray(0, fault.cutAfterBytes), () => response.destroy())
  })
  return {
    host: `localhost:${(server.address() as AddressInfo).port}`,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections()
      server.close()
      await once(server, 'close')
    },
  }
}

function document(mediaType: string, content: unknown): Blob {
  const bytes = Buffer.from(JSON.stringify(content))
  return { digest: sha256(bytes), bytes, mediaType }
}

function descriptor({ digest, bytes, mediaType }: Blob) {
  return { mediaType, digest, size: bytes.length }
}

/** Signs tokens as the registry wants them: a JWT with the certificate of its key in it. */
async function tokenIssuer(folder: string): Promise<{ token: (scope: string) => string }> {
  const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 })
  const key = privateKey.export({ type: 'pkcs8', format: 'pem' })
  writeFileSync(join(folder, 'issuer.key'), key)
  const subject = ['-subj', '/CN=test', '-days', '2']
  execFileSync('openssl', [
    'req',
    '-x509',
    '-key',
    join(folder, 'issuer.key'),
    '-out',
    join(folder, 'issuer.pem'),
    ...subject,
  ])
  const certificate = execFileSync('openssl', ['x509', '-in', join(folder, 'issuer.pem'), '-outform', 'DER'])
  const part = (value: unknown) => Buffer.from(JSON.stringify(value)).toString('base64url')
  return {
    token(scope) {
      const [type, name, actions] = scope.split(':')
      const now = Math.floor(Date.now() / 1000)
      const access = scope === '' ? [] : [{ type, name, actions: actions?.split(',') }]
      const head = part({ typ: 'JWT', alg: 'RS256', x5c: [certificate.toString('base64')] })
      const claims = part({
        iss: 'test',
        sub: '',
        aud: 'test',
        exp: now + 300,
        nbf: now - 10,
        iat: now,
        jti: String(now),
        access,
      })
      const signature = createSign('sha256').update(`${head}.${claims}`).sign(privateKey, 'base64url')
      return `${head}.${claims}.${signature}`
    },
  }
}

async function listen(onRequest: RequestListener): Promise<Server> {
  const server = createServer(onRequest)
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return server
}

async function freePort(): Promise<number> {
  const server = await listen(() => {})
  const { port } = server.address() as AddressInfo
  server.close()
  await once(server, 'close')
  return port
}
