import { execFileSync, spawn } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { existsSync, lstatSync, readdirSync, readFileSync, utimesSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest'
import { type ImageProgress, type OciImage, workerUid } from './images.ts'
import { ImageLab } from './testing/lab.ts'
import { gnuTar, rawTar } from './testing/layers.ts'
import { badNetwork, type Fault, TestRegistry } from './testing/registry.ts'

/** Images of the test's own, in the registry that servers run, fetched and made into disks. */

const MiB = 2 ** 20
let registry: TestRegistry
let lab: ImageLab
let home: string

beforeAll(async () => {
  registry = await TestRegistry.start()
})
afterAll(() => registry[Symbol.asyncDispose]())

beforeEach(async () => {
  lab = await ImageLab.make(registry.hosts)
  home = lab.home
})
afterEach(() => {
  // Nothing half made is left, whatever the test was about.
  const left = lab.work()
  lab[Symbol.dispose]()
  expect(left).toEqual([])
})

const list: ImageLab['list'] = (...of) => lab.list(...of)
const ensure: ImageLab['ensure'] = (...of) => lab.ensure(...of)
const inside = <T>(image: OciImage, look: (root: string) => T): T => lab.inside(image, look)
const workers = () => lab.workers()
const blobs = () => lab.blobs()

const patience = { timeout: 60_000 }

const system = gnuTar(
  `mkdir -p bin etc home/dev srv usr/bin var/tmp; echo old > srv/old
  echo sh > bin/sh; chmod 755 bin/sh; ln bin/sh bin/ash; ln -s ../bin/sh usr/bin/shell
  printf 'root:x:0:0:root:/root:/bin/sh\\ndev:x:1000:1000::/home/dev:/bin/sh\\nweb:x:33:33::/var/www:/usr/sbin/nologin\\n' > etc/passwd
  chown -R 1000:1000 home/dev; chmod 1777 var/tmp; chmod 4755 bin/sh; touch -d @1700000000 etc/passwd`,
  ['--format=gnu'],
)

const capability = Buffer.from([1, 0, 0, 2, 0x80, 0x20, 0, 0, 0, 0, 0, 0, 0xff, 0, 0, 0, 0, 0, 0, 0])

test.each([
  ['the OCI’s', false],
  ['Docker’s', true],
] as const)('an image of %s types becomes a disk, however its layers are packed', async (_, docker) => {
  const config = {
    User: 'dev',
    Env: ['PATH=/usr/bin:/bin', 'MODE=x=y', 'HOME=/nope', '1=2'],
    ExposedPorts: { '443/tcp': {}, '9000': {}, '3000/tcp': {}, '2000/udp': {} },
    Entrypoint: ['/bin/sh'],
    Cmd: ['-c', 'serve'],
    WorkingDir: '/srv',
  }
  const change = rawTar([
    { path: 'etc/.wh.passwd~' },
    { path: 'etc/motd', content: 'hello\n', uid: 7 },
    { path: 'var/.wh.tmp' },
    { path: 'srv/.wh..wh..opq' },
    { path: 'srv/new', content: 'new' },
    { path: 'bin/ash2', type: '1', linkPath: 'bin/ash' },
    { path: 'bin/ping', content: 'ping', mode: 0o755, records: { 'SCHILY.xattr.security.capability': capability } },
    { path: 'dev/zero', type: '3', device: [1, 5] },
    {
      path: 'holes',
      content: 'xy',
      records: { 'GNU.sparse.realsize': String(64 * MiB), 'GNU.sparse.map': `${32 * MiB},2` },
    },
  ])
  const more = rawTar([{ path: 'etc/issue', content: 'more\n' }])
  const manifest = await registry.pushParts('team/app', {
    layers: [system, change, more],
    config,
    compression: docker ? 'gzip' : ['gzip', 'zstd', 'none'],
    docker,
  })
  const other = await registry.pushParts('team/app', { layers: [system], architecture: 'arm64', docker })
  const digest = await registry.pushIndex(
    'team/app',
    `v-${docker}`,
    [
      { platform: 'linux/arm64', manifest: other },
      { platform: 'linux/amd64', manifest },
    ],
    docker,
  )

  const progress: ImageProgress[] = []
  const image = await ensure(`${registry.host}/team/app:v-${docker}`, { progress })
  expect(image).toMatchObject({
    name: `${registry.host}/team/app:v-${docker}`,
    hash: manifest.digest.slice(7),
    loginUser: 'dev',
    init: false,
    settings: {
      webPort: 3000,
      environment: { PATH: '/usr/bin:/bin:/exe/bin', MODE: 'x=y' },
      service: { arguments: ['/bin/sh', '-c', 'serve'], uid: 1000, gid: 1000, workingDirectory: '/srv' },
    },
  })
  expect(lstatSync(image.path).size).toBe(image.sizeBytes)
  inside(image, (root) => {
    expect(readFileSync(join(root, 'etc/motd'), 'utf8')).toBe('hello\n')
    expect(readFileSync(join(root, 'etc/issue'), 'utf8')).toBe('more\n')
    expect(lstatSync(join(root, 'etc/motd')).uid).toBe(7)
    expect(lstatSync(join(root, 'bin/sh')).mode & 0o7777).toBe(0o4755)
    expect(lstatSync(join(root, 'bin/sh')).ino).toBe(lstatSync(join(root, 'bin/ash')).ino)
    expect(lstatSync(join(root, 'home/dev')).uid).toBe(1000)
    expect(lstatSync(join(root, 'etc/passwd')).mtimeMs).toBe(1_700_000_000_000)
    expect(existsSync(join(root, 'var/tmp'))).toBe(false)
    expect(readdirSync(join(root, 'srv'))).toEqual(['new'])
    // A link to a file of the layer below.
    expect(lstatSync(join(root, 'bin/sh')).ino).toBe(lstatSync(join(root, 'bin/ash2')).ino)
    const attributes = execFileSync('getfattr', ['-d', '-m', '-', '-e', 'hex', 'bin/ping'], { cwd: root })
    expect(attributes.toString()).toContain(`security.capability=0x${capability.toString('hex')}`)
    expect(lstatSync(join(root, 'dev/zero')).rdev).toBe(0x105)
    const holes = lstatSync(join(root, 'holes'))
    expect([holes.size, holes.blocks * 512 < MiB]).toEqual([64 * MiB, true])
    expect(
      execFileSync('tail', ['-c', `+${32 * MiB + 1}`, 'holes'], { cwd: root, maxBuffer: 40 * MiB }).toString(
        'latin1',
        0,
        3,
      ),
    ).toBe('xy\0')
  })
  execFileSync('e2fsck', ['-fn', image.path], { stdio: 'ignore' })
  expect(progress.map(({ step }) => step)).toEqual(expect.arrayContaining(['resolving', 'fetching', 'making']))
  const fetched = progress.filter((one) => one.step === 'fetching').at(-1)
  expect(fetched).toMatchObject({ layers: 3 })
  expect(fetched?.doneBytes).toBe((fetched as { totalBytes: number }).totalBytes)
  // By its digest, and that of the list of platforms, it is the same.
  for (const same of [manifest.digest, digest])
    expect((await ensure(`${registry.host}/team/app@${same}`)).path).toBe(image.path)
})

test('the worker has given root up, and sees nothing but the layers', async () => {
  await using slow = await badNetwork(registry, (path) =>
    path.includes('/blobs/') ? { cutAfterBytes: 100_000 } : undefined,
  )
  list([...registry.hosts, slow.host])
  await registry.push('big', 'latest', { layers: [rawTar([{ path: 'x', content: randomBytes(MiB) }])] })
  const leave = new AbortController()
  const waited = ensure(`${slow.host}/big`, { signal: leave.signal })
  await expect.poll(() => blobs().length, patience).toBeGreaterThan(0)
  const [worker] = await workers()
  const status = readFileSync(`/proc/${worker?.pid}/status`, 'utf8')
  expect(/^Uid:\t(.*)$/m.exec(status)?.[1]).toBe([workerUid, workerUid, workerUid, workerUid].join('\t'))
  expect(/^Groups:[ \t]*(.*)$/m.exec(status)?.[1]?.trim()).toBe('')
  expect(/^CapEff:[ \t]*(.*)$/m.exec(status)?.[1]).toBe('0000000000000000')
  expect(lstatSync(join(home, 'oci/images')).mode & 0o777).toBe(0o700)
  leave.abort()
  await expect(waited).rejects.toThrow(/abort/)
  await expect.poll(async () => (await workers()).length, patience).toBe(0)
  await expect.poll(() => readdirSync(join(home, 'oci/work')), patience).toEqual([])
})

test('an image that is there is not fetched again, and those who want it at once wait for one', async () => {
  const asked: string[] = []
  await using counted = await badNetwork(registry, (path) => void asked.push(path))
  list([counted.host])
  await registry.push('shared', 'latest', { layers: [system, rawTar([{ path: 'a', content: 'x' }])] })
  const made = await Promise.all([1, 2, 3].map(() => ensure(`${counted.host}/shared`)))
  expect(new Set(made.map(({ path }) => path)).size).toBe(1)
  expect(asked.filter((path) => path.includes('/blobs/')).length).toBe(3)
  asked.length = 0
  await ensure(`${counted.host}/shared`)
  expect(asked.some((path) => path.includes('/manifests/'))).toBe(true)
  // Its configuration, which says what it is for.
  expect(asked.filter((path) => path.includes('/blobs/')).length).toBe(1)
  // The next of the family brings only what is new.
  asked.length = 0
  await registry.push('shared', 'next', { layers: [system, rawTar([{ path: 'b', content: 'y' }])] })
  await ensure(`${counted.host}/shared:next`)
  expect(asked.filter((path) => path.includes('/blobs/')).length).toBe(2)
})

test('a transfer that breaks off goes on from where it was', async () => {
  const ranges: string[] = []
  let broken = 0
  const layer = rawTar([{ path: 'x', content: randomBytes(2 * MiB) }])
  await registry.push('broken', 'latest', { layers: [layer], compression: 'none' })
  await using bad = await badNetwork(registry, (path, headers) => {
    if (!path.includes('/blobs/')) return undefined
    if (headers.range) ranges.push(String(headers.range))
    return broken++ < 4 && broken > 1 ? { cutAfterBytes: 300_000 } : undefined
  })
  list([bad.host])
  const image = await ensure(`${bad.host}/broken`)
  inside(image, (root) => expect(lstatSync(join(root, 'x')).size).toBe(2 * MiB))
  expect(ranges.length).toBe(3)
  expect(Number(/^bytes=(\d+)-$/.exec(ranges[2] ?? '')?.[1])).toBeGreaterThan(500_000)
})

test('an image of one program has the folders of a system, a user and nothing that is not its own', async () => {
  await registry.push('one', 'latest', { layers: [rawTar([{ path: 'app', content: 'elf', mode: 0o755 }])] })
  const image = await ensure(`${registry.host}/one`)
  expect(image).toMatchObject({ loginUser: 'root', init: false, settings: { webPort: null, service: null } })
  const names = inside(image, (root) => readdirSync(root).sort())
  expect(names).toEqual(['app', 'dev', 'etc', 'lost+found', 'proc', 'run', 'sys', 'tmp'])
})

test('a registry that cannot give a part gives the whole again', async () => {
  let broken = 0
  const layer = rawTar([{ path: 'x', content: randomBytes(MiB) }])
  await registry.push('whole', 'latest', { layers: [layer], compression: 'none' })
  await using bad = await badNetwork(registry, (path) => {
    if (!path.includes('/blobs/')) return undefined
    return broken++ === 1 ? { cutAfterBytes: 300_000, ignoreRange: true } : { ignoreRange: true }
  })
  list([bad.host])
  await ensure(`${bad.host}/whole`)
})

test('a server that is killed while it fetches leaves no process, and the next goes on', async () => {
  const ranges: string[] = []
  let isOpen = false
  const layer = rawTar([{ path: 'x', content: randomBytes(2 * MiB) }])
  await registry.push('killed', 'latest', { layers: [layer], compression: 'none' })
  await using bad = await badNetwork(registry, (path, headers) => {
    if (!path.includes('/blobs/')) return undefined
    if (headers.range) ranges.push(String(headers.range))
    return isOpen || path.length < 10 ? undefined : { cutAfterBytes: 400_000 }
  })
  list([bad.host])
  const server = spawn(
    process.execPath,
    [join(import.meta.dirname, 'testing/pull.ts'), home, join(home, 'registries.json'), `${bad.host}/killed`],
    { stdio: ['ignore', 'pipe', 'inherit'] },
  )
  const exited = once(server, 'exit')
  for await (const chunk of server.stdout) if (/"doneBytes":[1-9]/.test(String(chunk))) break
  server.kill('SIGKILL')
  await exited
  await expect.poll(async () => (await workers()).length, patience).toBe(0)
  expect(readdirSync(join(home, 'oci/work')).length).toBe(1)
  isOpen = true
  ranges.length = 0
  const images = await lab.open()
  await images.sweep(new Set())
  expect(readdirSync(join(home, 'oci/work'))).toEqual([])
  await ensure(`${bad.host}/killed`)
  expect(ranges.length).toBe(1)
})

test('credentials of the operator open what is private, by name and password', async () => {
  await using closed = await TestRegistry.start({ username: 'op', password: 'pass word' })
  await closed.push('secret', 'latest', { layers: [system] })
  list(closed.hosts)
  await expect(ensure(`${closed.host}/secret`)).rejects.toMatchObject({
    code: 'image.credentials',
    message: expect.stringMatching(/needs credentials: the operator can put those .* registries\.json/),
  })
  list(closed.hosts, { [closed.host]: { username: 'op', password: 'wrong' } })
  await expect(ensure(`${closed.host}/secret`)).rejects.toMatchObject({
    code: 'image.credentials',
    message: expect.stringMatching(/does not give .* to the operator's account/),
  })
  list(closed.hosts, { [closed.host]: { username: 'op', password: 'pass word' } })
  await ensure(`${closed.host}/secret`)
})

test('a token service gives what is public to anybody, and what is private to the operator', async () => {
  await using closed = await TestRegistry.start({ username: 'op', password: 'pw', token: true })
  await closed.push('public/app', 'latest', { layers: [system] })
  await closed.push('secret/app', 'latest', { layers: [system] })
  list(closed.hosts)
  await ensure(`${closed.host}/public/app`)
  await expect(ensure(`${closed.host}/secret/app`)).rejects.toMatchObject({ code: 'image.credentials' })
  list(closed.hosts, { [closed.host]: { username: 'op', password: 'pw' } })
  await ensure(`${closed.host}/secret/app`)
})

test.each<[string, string, RegExp]>([
  ['HOST/arm:nothing', 'image.not_found', /^There is no image localhost:\d+\/arm:nothing/],
  ['HOST/arm', 'image.platform', /is not made for linux\/amd64, only for linux\/arm64$/],
  ['HOST/arm:list', 'image.platform', /is not made for linux\/amd64, only for linux\/arm64$/],
  ['HOST/lies', 'image.digest', /is not what its configuration says/],
  ['HOST/hostile', 'image.invalid', /a path that leads out of it: \.\.\/\.\.\/etc\/cron\.d\/x/],
  ['HOST/large', 'image.too_large', /holds 8\.\d MiB, and the machine's disk is 4\.0 MiB/],
  ['localhost:1/app', 'image.unreachable', /private network: the operator has not listed it/],
  ['10.255.255.1/app', 'image.unreachable', /private network/],
  ['berth-test.invalid/app', 'image.unreachable', /^The registry berth-test\.invalid cannot be reached: /],
  ['Not An Image', 'image.reference', /is no image/],
])('%s cannot be had, which is said in a sentence and leaves nothing', async (asked, code, message) => {
  await pushBad()
  const reference = asked.replace('HOST', registry.host)
  await expect(ensure(reference, { diskBytes: 4 * MiB })).rejects.toMatchObject({
    code,
    message: expect.stringMatching(message),
  })
  expect(readdirSync(join(home, 'oci/images'))).toEqual([])
})

let pushed: Promise<void> | undefined
function pushBad(): Promise<void> {
  pushed ??= (async () => {
    await registry.push('arm', 'latest', { layers: [system], architecture: 'arm64' })
    const arm = await registry.pushParts('arm', { layers: [system], architecture: 'arm64' })
    await registry.pushIndex('arm', 'list', [
      { platform: 'linux/arm64', manifest: arm },
      { platform: 'unknown/unknown', manifest: arm },
    ])
    await registry.push('lies', 'latest', { layers: [system], diffIds: [`sha256:${'0'.repeat(64)}`] })
    const outside = rawTar([{ path: '../../etc/cron.d/x', content: '* * * * * root true' }])
    await registry.push('hostile', 'latest', { layers: [outside] })
    const large = rawTar([{ path: 'x', content: Buffer.alloc(8 * MiB) }])
    await registry.push('large', 'latest', { layers: [large] })
  })()
  return pushed
}

test('a registry that answers with errors, or whose token service does not answer, is told as that', async () => {
  let fault: Fault = { status: 500 }
  await using bad = await badNetwork(registry, () => fault)
  list([bad.host, 'localhost:1'])
  await expect(ensure(`${bad.host}/app`)).rejects.toMatchObject({
    code: 'image.unreachable',
    message: expect.stringMatching(/^The registry localhost:\d+ answers 500$/),
  })
  fault = { status: 401, headers: { 'www-authenticate': 'Bearer realm="http://localhost:1/token",service="x"' } }
  await expect(ensure(`${bad.host}/app`)).rejects.toMatchObject({
    code: 'image.unreachable',
    message: expect.stringMatching(/^The token service of localhost:\d+, localhost:1, cannot be reached: it refuses/),
  })
  fault = { status: 401, headers: { 'www-authenticate': 'Bearer realm="http://169.254.169.254/latest"' } }
  await expect(ensure(`${bad.host}/app`)).rejects.toMatchObject({
    message: expect.stringMatching(/^169\.254\.169\.254 is in a private network/),
  })
  fault = { status: 307, headers: { location: 'http://127.0.0.1:1/secret' } }
  await expect(ensure(`${bad.host}/app`)).rejects.toMatchObject({
    message: expect.stringMatching(/^127\.0\.0\.1:1 is in a private network/),
  })
  fault = { status: 429, headers: { 'retry-after': '3600' } }
  await expect(ensure(`${bad.host}/app`)).rejects.toMatchObject({
    message: expect.stringMatching(/has had too many requests: try again in 60 min/),
  })
})

test('layers that were spoiled on the way or on the disk are not taken', async () => {
  const image = { layers: [rawTar([{ path: 'x', content: randomBytes(100_000) }])], compression: 'none' } as const
  const { layers } = JSON.parse((await registry.pushParts('spoiled', image)).bytes.toString())
  await registry.push('spoiled', 'latest', image)
  const file = registry.fileOf(layers[0].digest)
  const whole = readFileSync(file)
  const spoiled = Buffer.from(whole)
  spoiled[5000] = (spoiled[5000] ?? 0) ^ 1
  writeFileSync(file, spoiled)
  await expect(ensure(`${registry.host}/spoiled`)).rejects.toMatchObject({ code: 'image.digest' })
  expect(blobs()).toEqual([])
  writeFileSync(file, whole)
  // The beginning of it, as a power cut may leave one.
  writeFileSync(join(home, 'oci/blobs', `${layers[0].digest.replace(':', '-')}.part`), Buffer.alloc(50_000))
  execFileSync('chown', ['-R', String(workerUid), join(home, 'oci/blobs')])
  await ensure(`${registry.host}/spoiled`)
})

test('a layer that was damaged while it was kept is told as that, and fetched anew at the next try', async () => {
  const shared = rawTar([{ path: 'x', content: randomBytes(100_000) }])
  await registry.push('damaged', 'one', { layers: [shared], compression: 'none' })
  await registry.push('damaged', 'two', { layers: [shared, rawTar([{ path: 'y' }])], compression: 'none' })
  await ensure(`${registry.host}/damaged:one`)
  const [name = ''] = blobs()
  const kept = join(home, 'oci/blobs', name)
  const bytes = readFileSync(kept)
  bytes[5000] = (bytes[5000] ?? 0) ^ 1
  writeFileSync(kept, bytes)
  await expect(ensure(`${registry.host}/damaged:two`)).rejects.toMatchObject({
    code: 'image.digest',
    message: expect.stringMatching(/was damaged and is removed: try again/),
  })
  await ensure(`${registry.host}/damaged:two`)
})

test('without room nothing is begun, and layers that are only kept make some', async () => {
  await registry.push('room', 'latest', { layers: [system] })
  await ensure(`${registry.host}/room`)
  expect(blobs().length).toBe(1)
  await registry.push('room', 'next', { layers: [rawTar([{ path: 'x', content: 'x' }])] })
  lab.freeBytes = MiB
  await expect(ensure(`${registry.host}/room:next`)).rejects.toMatchObject({
    code: 'storage.full',
    message: expect.stringMatching(/are left$|is full/),
  })
  expect(blobs()).toEqual([])
})

test('images that do not fit in together are fetched one after the other', async () => {
  const layers = [1, 2].map(() => rawTar([{ path: 'x', content: randomBytes(2 * MiB).toString('hex') }]))
  const digests = layers.map((bytes) => createHash('sha256').update(bytes).digest('hex'))
  const go = Promise.withResolvers<void>()
  await using held = await badNetwork(registry, async (path) => {
    if (digests.some((digest) => path.endsWith(digest))) await go.promise
    return undefined
  })
  list([held.host])
  for (const [index, layer] of layers.entries())
    await registry.push('beside', `v${index}`, { layers: [layer], compression: 'none' })
  lab.freeBytes = 7 * MiB
  const progress: ImageProgress[][] = [[], []]
  const both = progress.map((steps, index) =>
    ensure(`${held.host}/beside:v${index}`, { accountId: index + 1, progress: steps }),
  )
  // What is told first is that it waits for its turn.
  const waiting = () => progress.filter((steps) => steps.slice(1).some(({ step }) => step === 'waiting')).length
  await expect.poll(waiting, patience).toBe(1)
  lab.freeBytes = 2 ** 40
  go.resolve()
  await Promise.all(both)
})

test('where its space is needed, all goes that can be fetched again, but for what machines were made of or are about to be', async () => {
  const used = await registry.push('needed', 'used', { layers: [system] })
  await registry.push('needed', 'old', { layers: [system, rawTar([{ path: 'a' }])] })
  await registry.push('needed', 'new', { layers: [system, rawTar([{ path: 'b' }])] })
  const of = async (tag: string) => await ensure(`${registry.host}/needed:${tag}`)
  const [one, old, young] = [await of('used'), await of('old'), await of('new')]
  const anHourAgo = new Date(Date.now() - 3_600_000)
  for (const image of [one, old]) utimesSync(join(image.path, '../image.json'), anHourAgo, anHourAgo)
  const inUse = new Set([used.slice(7)])
  expect(await lab.images.giveUp(inUse)).toBe(true)
  expect([one, old, young].map(({ path }) => existsSync(path))).toEqual([true, false, true])
  expect(blobs()).toEqual([])
  expect(await lab.images.giveUp(inUse)).toBe(false)
})

test('images and layers that nobody has used for long are removed, and those of machines are not', async () => {
  const digest = await registry.push('old', 'latest', { layers: [system] })
  const other = await registry.push('old', 'other', { layers: [system, rawTar([{ path: 'x' }])] })
  const used = await ensure(`${registry.host}/old`)
  const unused = await ensure(`${registry.host}/old:other`)
  await lab.images.sweep(new Set())
  expect(existsSync(unused.path)).toBe(true)
  const longAgo = new Date(Date.now() - 8 * 86_400_000)
  for (const image of [used, unused]) utimesSync(join(image.path, '../image.json'), longAgo, longAgo)
  for (const name of blobs()) utimesSync(join(home, 'oci/blobs', name), longAgo, longAgo)
  await lab.images.sweep(new Set([digest.slice(7)]))
  expect([existsSync(used.path), existsSync(unused.path), blobs()]).toEqual([true, false, []])
  // What was removed comes back when it is asked for.
  expect((await ensure(`${registry.host}/old:other`)).hash).toBe(other.slice(7))
})
