import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { gnuTar, rawTar } from '../../vmhost/images/testing/layers.ts'
import { TestRegistry } from '../../vmhost/images/testing/registry.ts'
import { type Product, SERVER_ADDRESS, startProduct } from './product.ts'

/** A container image with one program, no shell, no init and no user of its own, from a registry: a machine with SSH. */
let product: Product
let registry: TestRegistry
let there: AsyncDisposable

beforeAll(async () => {
  registry = await TestRegistry.start({ username: 'op', password: 'secret' })
  const config = {
    Entrypoint: ['/app/busybox', 'httpd', '-f', '-p', '8080'],
    Cmd: ['-h', '/www'],
    User: '1000:1000',
    Env: ['PATH=/app', 'GREETING=good day'],
    ExposedPorts: { '8080/tcp': {} },
  }
  const program = gnuTar('mkdir app; cp "$(command -v busybox)" app/busybox')
  const page = rawTar([{ path: 'www/index.html', content: 'the page\n' }, { path: 'app/.wh.old' }, { path: '.wh.bin' }])
  const old = rawTar([
    { path: 'app/old', content: 'old' },
    { path: 'bin/sh', content: 'no shell' },
  ])
  await registry.push('team/one', 'v1', { layers: [old, program, page], config, compression: ['gzip', 'zstd', 'gzip'] })
  product = await startProduct()
  there = await registry.alsoIn(product.serverNamespace)
  const auths = Object.fromEntries(registry.hosts.map((host) => [host, {}]))
  const auth = Buffer.from('op:secret').toString('base64')
  writeFileSync(
    join(product.dataDirectory, 'registries.json'),
    JSON.stringify({ auths: { ...auths, [registry.host]: { auth } } }),
    { mode: 0o600 },
  )
})
afterAll(async () => {
  await there?.[Symbol.asyncDispose]()
  await product?.[Symbol.asyncDispose]()
  await registry?.[Symbol.asyncDispose]()
})

it('an image of one program becomes a machine with SSH, which runs that program', async () => {
  const missing = await product.lobby(`new none --image ${registry.host}/team/none --memory 512M --disk 1G`)
  expect(missing).toMatchObject({
    status: 1,
    stderr: expect.stringMatching(/none was not made, .*There is no image .*team\/none/),
  })
  const made = await product.lobby(`new one --image ${registry.host}/team/one:v1 --cpu 1 --memory 512M --disk 1G`)
  expect(made, made.stderr).toMatchObject({ status: 0 })
  const one = `one@${SERVER_ADDRESS}`
  const session = await product.ssh([one, 'id -u; echo "$GREETING"; ls -d /app/* /bin /tmp'])
  expect(session.stdout).toBe('0\ngood day\n/app/busybox\n/tmp\n')
  expect((await product.ssh([one, 'wget -qO- http://127.0.0.1:8080/'])).stdout).toBe('the page\n')
  const programs = 'for p in /proc/[0-9]*; do grep -qs ^/app/busybox.httpd $p/cmdline && grep ^Uid: $p/status; done'
  const owner = await product.ssh([one, programs])
  expect(owner.stdout).toMatch(/^Uid:\t1000\t/)
  const copied = await product.outside('scp', [...product.sshOptions, `${one}:/www/index.html`, 'page'])
  expect(copied, copied.stderr).toMatchObject({ status: 0 })
  expect((await product.lobby('logs one')).stdout).toMatch(/starting the image's own program, \/app\/busybox/)
  expect(JSON.parse((await product.lobby('port one --json')).stdout)).toMatchObject({ port: 8080 })
  // It comes back with what it has become, and asks no registry for it.
  await there[Symbol.asyncDispose]()
  await product.ssh([one, 'echo kept > /kept; sync'])
  expect(await product.lobby('restart one', { timeoutMs: 300_000 })).toMatchObject({ status: 0 })
  expect((await product.ssh([one, 'cat /kept; wget -qO- http://127.0.0.1:8080/'])).stdout).toBe('kept\nthe page\n')
})
