import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, it, vi } from 'vitest'
import { gnuTar, rawTar } from '../../vmhost/images/testing/layers.ts'
import { TestRegistry } from '../../vmhost/images/testing/registry.ts'
import { alpineLikeLayer, debianLayer, distrolessLayer } from './distributions.ts'
import { type Product, SERVER_ADDRESS, startProduct } from './product.ts'

/** Emulated guests, one at a time. */
vi.setConfig({ testTimeout: 600_000, hookTimeout: 600_000 })

/** Container images from a registry, with whatever they have and have not, become machines with SSH. */
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
  const path = 'PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
  await registry.push('debian', 'latest', {
    layers: [await debianLayer()],
    config: { Env: [path], Cmd: ['bash'] },
    compression: 'zstd',
  })
  await registry.push('alpine', 'latest', {
    layers: [alpineLikeLayer()],
    config: { Env: [path], Cmd: ['/bin/sh'], WorkingDir: '/' },
    docker: true,
  })
  await registry.push('distroless', 'nonroot', {
    layers: [distrolessLayer()],
    config: {
      Env: [path, 'SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt'],
      User: '65532',
      Entrypoint: ['/server'],
      WorkingDir: '/home/nonroot',
      ExposedPorts: { '8080/tcp': {} },
    },
  })
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
/** @returns what a command prints in the machine */
async function inside(name: string, command: string): Promise<string> {
  const done = await product.ssh([`${name}@${SERVER_ADDRESS}`, command])
  expect(done, `${command}: ${done.stderr}`).toMatchObject({ status: 0 })
  return done.stdout
}

async function make(name: string, image: string): Promise<void> {
  const made = await product.lobby(`new ${name} --image ${registry.host}/${image} --cpu 1 --memory 512M --disk 2G`, {
    timeoutMs: 500_000,
  })
  expect(made, made.stderr).toMatchObject({ status: 0 })
}

/** Files both ways by SFTP, and by SCP's old protocol, which wants a program in the machine. */
async function movesFiles(name: string): Promise<void> {
  const batch = 'put id_ed25519.pub /tmp/sent\nget /tmp/sent received\nchmod 600 /tmp/sent\nls -l /tmp/sent\n'
  const moved = await product.outside('sftp', [...product.sshOptions, '-b', '-', `${name}@${SERVER_ADDRESS}`], {
    input: batch,
  })
  expect(moved, moved.stderr).toMatchObject({ status: 0, stdout: expect.stringMatching(/^-rw------- /m) })
  const key = readFileSync(join(product.home, 'id_ed25519.pub'), 'utf8')
  expect(readFileSync(join(product.home, 'received'), 'utf8')).toBe(key)
  const old = await product.outside('scp', ['-O', ...product.sshOptions, `${name}@${SERVER_ADDRESS}:/tmp/sent`, 'old'])
  expect(old, old.stderr).toMatchObject({ status: 0 })
  expect(readFileSync(join(product.home, 'old'), 'utf8')).toBe(key)
}

afterAll(async () => {
  await there?.[Symbol.asyncDispose]()
  await product?.[Symbol.asyncDispose]()
  await registry?.[Symbol.asyncDispose]()
})

it('Debian’s image, which has no init and no sshd, is a machine with its own shell and packages', async () => {
  await make('deb', 'debian')
  const seen = await inside(
    'deb',
    `readlink /proc/$$/exe; . /etc/os-release; echo $ID; id -un; cat /proc/1/comm; ls /sbin/init /usr/bin/systemctl 2>&1 | grep -c 'No such file'
     dpkg-query -W -f '\${db:Status-Status}\\n' bash; dpkg --audit; echo "$PATH"`,
  )
  expect(seen.split('\n')).toEqual([
    ...['/usr/bin/bash', 'debian', 'root', 'exe-init', '2', 'installed'],
    ...['/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/exe/bin', ''],
  ])
  // Packages can be installed: their scripts, users and files find what they look for.
  const install = `cd /tmp && mkdir -p p/DEBIAN p/opt && printf 'Package: own\\nVersion: 1\\nArchitecture: all\\nMaintainer: x\\nDescription: x\\n' > p/DEBIAN/control &&
    printf '#!/bin/sh\\nuseradd --system own\\n' > p/DEBIAN/postinst && chmod 755 p/DEBIAN/postinst && echo hello > p/opt/own &&
    dpkg-deb -b p own.deb > /dev/null && dpkg -i own.deb > /dev/null && cat /opt/own && getent passwd own | cut -d: -f1`
  expect(await inside('deb', install)).toBe('hello\nown\n')
  await movesFiles('deb')
  const terminal = product.terminal('ssh', ['-tt', ...product.sshOptions, `deb@${SERVER_ADDRESS}`])
  await terminal.expect('root@deb:~# ', 60_000)
  terminal.type('echo $((6 * 7))@$TERM; exit\r')
  await terminal.expect('42@xterm-256color', 60_000)
  expect(await terminal.ended).toBe(0)
  await product.lobby('rm --now -f deb')
})

it('an image like Alpine’s, with ash, musl and BusyBox’s init, is a machine', async () => {
  await make('alp', 'alpine')
  const seen = await inside(
    'alp',
    'readlink /proc/$$/exe; echo "$SHELL"; hello; cat /proc/1/comm; . /etc/os-release; echo $ID; which bash useradd sudo | wc -l',
  )
  expect(seen).toBe('/bin/busybox\n/bin/ash\nit is musl\nexe-init\nalpine\n0\n')
  await movesFiles('alp')
  await product.lobby('rm --now -f alp')
})

it('an image without a distribution, whose users have no shell, is a machine with the shell of its tools', async () => {
  await make('less', 'distroless:nonroot')
  expect(
    await inside('less', 'id -u; echo "$SHELL"; ls /bin 2>/dev/null | wc -l; wget -qO- http://127.0.0.1:8080/'),
  ).toBe('0\n/exe/bin/sh\n0\nuid 65532 gid 65532 in /home/nonroot, home /home/nonroot\n')
  // The users of its disk are as they were.
  expect(
    await inside(
      'less',
      'mkdir /tmp/disk; mount -t ext4 /dev/vda /tmp/disk; head -n 1 /tmp/disk/etc/passwd; umount /tmp/disk',
    ),
  ).toBe('root:x:0:0:root:/root:/sbin/nologin\n')
  await movesFiles('less')
  await product.lobby('rm --now -f less')
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
