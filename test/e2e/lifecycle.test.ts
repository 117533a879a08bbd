import {
  closeSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readlinkSync,
  rmSync,
  statfsSync,
  symlinkSync,
} from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type Product, SERVER_ADDRESS, startProduct } from './product.ts'

/** States, the ways out of them, bad input, and what the operator's mistakes get. */
let product: Product
const demo = `demo@${SERVER_ADDRESS}`
const small = '--image minimal --memory 512M --cpu 1 --disk 2G'

type Listed = { vm_name: string; status: string; ip: string; reason?: string }
const listed = async () => (JSON.parse((await product.lobby('ls --json')).stdout) as { vms: Listed[] }).vms
const statusOf = async (name: string) => (await listed()).find((vm) => vm.vm_name === name)?.status

beforeAll(async () => {
  product = await startProduct()
  const made = await product.lobby(`new demo ${small}`)
  expect(made, made.stderr).toMatchObject({ status: 0 })
})
afterAll(() => product?.[Symbol.asyncDispose]())

describe('a machine', () => {
  it('is off after stop, says so to whoever knocks, and starts again with its disk', async () => {
    await product.ssh([demo, 'echo kept > kept; sync'])
    expect(await product.lobby('stop demo')).toMatchObject({ status: 0 })
    expect(await statusOf('demo')).toBe('stopped')
    expect(product.processes().hypervisors).toEqual([])
    const knock = await product.ssh([demo, 'true'])
    expect(knock.status).toBe(255)
    expect(knock.stderr).toMatch(/demo is off; to start it: start demo/)
    expect(await product.lobby('start demo')).toMatchObject({ status: 0 })
    expect((await product.ssh([demo, 'cat kept'])).stdout).toBe('kept\n')
  })

  it('stands still while its server’s disk is full, says so, and loses nothing once there is space', async () => {
    const store = product.storePath('')
    // The first machine's template is made meanwhile, and given up for others: that frees more than is left below.
    const templates = join(store, 'templates')
    await expect
      .poll(() => readdirSync(templates), { timeout: 300_000, interval: 500 })
      .toEqual([expect.stringMatching(/^[0-9a-f]{32}$/)])
    for (const name of readdirSync(templates)) rmSync(join(templates, name), { recursive: true })
    // XFS gives their blocks back a while after they are gone.
    let freeBytes = Number.NaN
    const change = () => {
      const { bavail, bsize } = statfsSync(store)
      const before = freeBytes
      freeBytes = bavail * bsize
      return Math.abs(freeBytes - before)
    }
    await expect.poll(change, { timeout: 60_000, interval: 2_000 }).toBeLessThan(2 ** 20)
    const filler = join(store, 'filler')
    const leaveBytes = 16 * 2 ** 20
    const filled = await product.outside('fallocate', ['-l', String(freeBytes - leaveBytes), filler])
    expect(filled, filled.stderr).toMatchObject({ status: 0 })
    const write = 'head -c 60000000 /dev/urandom > big; sha256sum big > sum; sync; sha256sum -c sum'
    const writing = product.ssh([demo, write], { timeoutMs: 240_000 })
    const reason = async () => (await listed()).find((vm) => vm.vm_name === 'demo')?.reason
    try {
      await expect.poll(reason, { timeout: 120_000, interval: 500 }).toMatch(/stands still.*disk is full/)
      // The server tells its free space every half minute.
      const free = async () => Number((await product.sql()`select store_free_bytes as free from hosts`)[0]?.free)
      await expect.poll(free, { timeout: 60_000, interval: 500 }).toBeLessThan(2 ** 30)
      const refused = await product.lobby(`new second ${small}`)
      expect(refused).toMatchObject({ status: 5, stderr: expect.stringMatching(/no server has room for a disk/) })
      expect(await product.sql()`select from machine_names where name = 'second'`).toHaveLength(0)
    } finally {
      rmSync(filler)
    }
    expect(await writing).toMatchObject({ status: 0, stdout: 'big: OK\n' })
    expect(await reason()).toBeUndefined()
  })

  it('that powers itself off is stopped, with the reason, and one that reboots itself comes back', async () => {
    await product.ssh([`root+${demo}`, 'systemctl poweroff'])
    await expect.poll(() => statusOf('demo'), { timeout: 60_000, interval: 500 }).toBe('stopped')
    expect(await product.lobby('start demo')).toMatchObject({ status: 0 })
    const bootId = async () => (await product.ssh([demo, 'cat /proc/sys/kernel/random/boot_id'])).stdout
    const before = await bootId()
    expect(before).toMatch(/^[0-9a-f-]{36}\n$/)
    // What systemd does in the end, without waiting for it: SSH answers before it does. The session ends with the guest.
    await product.ssh([`root+${demo}`, 'systemctl reboot --force --force'], { timeoutMs: 20_000 })
    await expect
      .poll(async () => [before, ''].includes(await bootId()), { timeout: 120_000, interval: 500 })
      .toBe(false)
    expect((await product.ssh([demo, 'cat kept'])).stdout).toBe('kept\n')
  })

  it('that panics is failed with a reason a person can read, and restart is the way out', async () => {
    await product.ssh([`root+${demo}`, 'sync; echo c > /proc/sysrq-trigger'], { timeoutMs: 30_000 })
    await expect.poll(() => statusOf('demo'), { timeout: 60_000, interval: 500 }).toBe('failed')
    const knock = await product.ssh([demo, 'true'])
    expect(knock.stderr).toMatch(/panic[\s\S]*restart demo/)
    expect(await product.lobby('restart demo')).toMatchObject({ status: 0 })
    expect((await product.ssh([demo, 'cat kept'])).stdout).toBe('kept\n')
  })

  it('in the trash frees its name at once and comes back whole', async () => {
    const before = (await listed()).find((vm) => vm.vm_name === 'demo')
    expect(await product.lobby('rm demo')).toMatchObject({ status: 0 })
    expect(await listed()).toEqual([])
    expect((await product.lobby('trash')).stdout).toContain('demo')
    expect(await product.lobby('untrash demo --as second')).toMatchObject({ status: 0 })
    await product.lobby('start second')
    expect((await listed()).find((vm) => vm.vm_name === 'second')?.ip).toBe(before?.ip)
    expect((await product.ssh([`second@${SERVER_ADDRESS}`, 'cat kept'])).stdout).toBe('kept\n')
    expect(await product.lobby('rename second demo')).toMatchObject({ status: 0 })
    expect((await product.ssh([demo, 'hostname'])).stdout).toBe('demo\n')
  })

  it('comes back from a backup that was made as the README says', async () => {
    await product.ssh([demo, 'echo saved > saved; sync'])
    expect(await product.lobby('stop demo')).toMatchObject({ status: 0 })
    // As on a server: where its store is mounted, which here would go with the product's last process.
    const mounts = openSync(`/proc/${product.processes().vmhost}/ns/mnt`, 'r')
    await product.stop()
    const data = product.dataDirectory
    const archive = join(product.home, 'berth.tar')
    const artifacts = readlinkSync(join(data, 'artifacts'))
    const tar = (...parameters: string[]) =>
      product.outside('nsenter', [`--mount=/proc/${process.pid}/fd/${mounts}`, 'tar', '-C', data, ...parameters])
    expect(await tar('--sparse', '--exclude=./artifacts', '-cf', archive, '.')).toMatchObject({ status: 0, stderr: '' })
    // Each disk is in it once: in the volume, where there is one.
    const saved = (await tar('-tf', archive)).stdout
    expect(/^\.\/store\/machines\/.*\/root\.raw$/m.test(saved)).toBe(!/^\.\/volume\.xfs$/m.test(saved))
    rmSync(data, { recursive: true })
    mkdirSync(data)
    expect(await tar('--numeric-owner', '-xpf', archive)).toMatchObject({ status: 0, stderr: '' })
    closeSync(mounts)
    // What a restored server makes again.
    symlinkSync(artifacts, join(data, 'artifacts'))
    await product.start()
    expect(await product.lobby('start demo')).toMatchObject({ status: 0 })
    expect((await product.ssh([demo, 'cat saved'])).stdout).toBe('saved\n')
  })

  it('without an init is run by exe-init itself: reached, reaped, powered off in order', async () => {
    await product.ssh([
      `root+${demo}`,
      'for f in /sbin/init /usr/sbin/init /lib/systemd/systemd /usr/lib/systemd/systemd; do test -e $f && mv $f $f.away; done; sync',
    ])
    expect(await product.lobby('restart demo')).toMatchObject({ status: 0 })
    const { stdout } = await product.ssh([
      demo,
      'readlink /proc/1/exe || sudo -n readlink /proc/1/exe; (sleep 0.1 & ) ; sleep 1; ps -eo stat= | grep -c ^Z || true',
    ])
    expect(stdout).toMatch(/init[\s\S]*\n0\n$/)
    expect(await product.lobby('stop demo')).toMatchObject({ status: 0 })
    expect((await product.lobby('logs demo')).stdout).toMatch(/berth: shutting down[\s\S]*re-mounted/)
  })

  it('whose disk is not ext4 is failed, says so on its console, and rm is a way out', async () => {
    const { id } = (
      await product.sql()<{ id: number }[]>`select machine_id as id from machine_names where name = 'demo'`
    )[0] ?? { id: 0 }
    const disk = product.storePath(`machines/${id}/root.raw`)
    await product.outside('dd', ['if=/dev/zero', `of=${disk}`, 'bs=64k', 'count=4', 'conv=notrunc'])
    expect((await product.lobby('start demo')).status).toBe(1)
    expect(await statusOf('demo')).toBe('failed')
    expect((await product.lobby('start demo')).stderr).toMatch(/ext4/)
    expect((await product.lobby('logs demo')).stdout).toMatch(/berth: .*ext4/)
    expect(await product.lobby('rm demo --now')).toMatchObject({ status: 0 })
    await expect
      .poll(() => product.sql()`select from addresses`.then((rows) => rows.length), { timeout: 30_000 })
      .toBe(0)
  })
})

describe('bad input gets a sentence, the right exit status, and leaves nothing half made', () => {
  it.each([
    ['new Demo', 2, /a-z|lower/],
    ['new root', 2, /root/],
    ['new demo9 --cpu many', 2, /cpu/],
    ['new demo9 --cpu 0', 2, /cpu/],
    ['new demo9 --memory 12', 2, /memory/],
    ['new demo9 --memory 4T', 5, /memory/],
    ['new demo9 --disk 900T', 5, /disk|space/],
    ['new demo9 --image localhost:1/nothing', 1, /nothing is left of it/],
    ['new demo9 --colour blue', 2, /--colour/],
    ['stop tpyo', 3, /no machine called tpyo/],
    ['lss', 2, /ls/],
    ['new demo9 "', 2, /quote/],
  ])('%s', async (line, status, sentence) => {
    const answer = await product.lobby(line)
    expect(answer, answer.stderr + answer.stdout).toMatchObject({ status, stdout: '' })
    expect(answer.stderr).toMatch(sentence)
    expect(
      await product.sql()`
      select from machines where name ~ 'demo9|root|Demo' and desired_state <> 'gone'`,
    ).toHaveLength(0)
  })

  it('and the same as one JSON document with --json', async () => {
    const answer = await product.lobby('stop tpyo --json')
    expect(answer.status).toBe(3)
    expect(JSON.parse(answer.stdout || answer.stderr)).toEqual({
      error: expect.stringContaining('tpyo'),
      code: expect.any(String),
      way_on: expect.stringMatching(/: new$|machines you can reach/),
    })
  })
})

describe('a bad setting stops the start with its name and what was expected', () => {
  it.each([
    ['BERTH_ACCEL', 'warp', /BERTH_ACCEL.*(kvm|tcg)/],
    ['BERTH_NETWORK', '203.0.113.0/24', /BERTH_NETWORK|203\.0\.113/],
    ['BERTH_SSH', 'nowhere', /BERTH_SSH/],
  ])('%s=%s', async (name, value, sentence) => {
    const data = mkdtempSync('/var/tmp/berth-bad-')
    symlinkSync(join(product.dataDirectory, 'artifacts'), join(data, 'artifacts'))
    const started = await product.outside(
      'ip',
      ['netns', 'exec', product.serverNamespace, 'node', join(import.meta.dirname, '../../berth.mjs'), 'start'],
      {
        env: { BERTH_DATA: data, [name]: value },
        timeoutMs: 60_000,
      },
    )
    rmSync(data, { recursive: true, force: true })
    expect(started.status).toBe(2)
    expect(started.stderr + started.stdout).toMatch(sentence)
  })
})
