import { existsSync, readdirSync } from 'node:fs'
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from 'vitest'
import { killOne } from './crash.rounds.ts'
import { type Product, SERVER_ADDRESS, startProduct } from './product.ts'

/** Machines that go on from a template of their image, each as itself, sooner than one that boots. */

/** Seven emulated guests. */
vi.setConfig({ testTimeout: 1_200_000 })

let product: Product
const LIMIT_MS = 600_000
const small = '--image minimal --memory 512M --cpu 1'

async function lobby(line: string): Promise<string> {
  const done = await product.lobby(line, { timeoutMs: LIMIT_MS })
  expect(done, `${line}: ${done.stderr}`).toMatchObject({ status: 0 })
  return done.stdout
}
async function inside(name: string, command: string): Promise<string> {
  const done = await product.ssh([`${name}@${SERVER_ADDRESS}`, command], { timeoutMs: LIMIT_MS })
  expect(done, `${name}: ${command}: ${done.stderr}`).toMatchObject({ status: 0 })
  return done.stdout.trim()
}

/** `new`, and the first command in it. @returns how long the two took */
async function made(name: string, more = '--disk 2G'): Promise<number> {
  const startedAt = performance.now()
  await lobby(`new ${name} ${small} ${more}`)
  await inside(name, 'true')
  return Math.round(performance.now() - startedAt)
}

const templates = () => (existsSync(product.storePath('templates')) ? readdirSync(product.storePath('templates')) : [])
/** Set-up's images, which machines that are not ready yet boot from, are of no interest here. */
async function template(): Promise<void> {
  await expect.poll(templates, { timeout: LIMIT_MS, interval: 200 }).toEqual([expect.stringMatching(/^[0-9a-f]{32}$/)])
  await expect.poll(() => product.processes().templates).toEqual([])
}
async function isFromTemplate(name: string): Promise<boolean> {
  const [row] = await product.sql()<{ id: number }[]>`
    select machine_id as id from machine_names where name = ${name}`
  const { stdout } = await product.outside('cat', [product.storePath(`machines/${row?.id}/started.json`)])
  return 'template' in (JSON.parse(stdout) as object)
}

type Self = { [what: string]: string }
async function selfOf(name: string): Promise<Self> {
  const askedAt = Date.now() / 1000
  const lines = await inside(
    name,
    `hostname; ip -4 -o addr show eth0 | awk '{print $4}'; cat /etc/machine-id; cat /proc/sys/kernel/random/boot_id
     sed 's/.* ip=\\([^:]*\\):.*:\\([^:]*\\):eth0:.*/\\1 \\2/' /proc/cmdline; ip route | grep '^default'; date +%s
     tr '\\n' ' ' < /etc/resolv.conf; echo; head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \\n'; echo`,
  )
  const [host = '', address = '', id = '', boot = '', told = '', route = '', now, names = '', random = ''] =
    lines.split('\n')
  expect(Number(now)).toBeGreaterThan(askedAt - 2)
  expect(Number(now)).toBeLessThan(Date.now() / 1000 + 2)
  const [row] = await product.sql()<{ key: string; address: string }[]>`
    select encode(observed_host_key, 'hex') as key, host(address) as address from machines
    join addresses on machine_id = machines.id where name = ${name} and observed_state = 'running'`
  expect(told).toBe(`${row?.address} ${name}`)
  expect(address).toBe(`${row?.address}/16`)
  expect(route.trim()).toBe('default via 10.42.0.1 dev eth0')
  return { host, address, id, boot, names, random, key: row?.key ?? '' }
}

beforeAll(async () => {
  product = await startProduct()
})
afterEach(async () => {
  const { vms } = JSON.parse(await lobby('ls --json')) as { vms: { vm_name: string }[] }
  for (const { vm_name } of vms) if (vm_name !== 'first') await lobby(`rm --now -f ${vm_name}`)
})
afterAll(() => product?.[Symbol.asyncDispose]())

describe('the first machine of an image', () => {
  it('boots, and the next go on from its template', async () => {
    const bootedMs = await made('first')
    expect(await isFromTemplate('first')).toBe(false)
    await template()
    const restoredMs = [await made('second'), await made('third')]
    expect([await isFromTemplate('second'), await isFromTemplate('third')]).toEqual([true, true])
    console.log(`new and ssh true: ${bootedMs} ms booted, ${restoredMs.join(' and ')} ms from the template`)
  })
})

describe('machines of a template', () => {
  it('are themselves, two at once, with the disk, environment and containers that they asked for', async () => {
    await template()
    const wishes = ['--disk 3G --env WHO=ada --tag a', '--disk 2G --env WHO=bob']
    await Promise.all(['ada', 'bob'].map((name, at) => lobby(`new ${name} ${small} ${wishes[at]}`)))
    expect([await isFromTemplate('ada'), await isFromTemplate('bob')]).toEqual([true, true])
    const [ada, bob, first] = [await selfOf('ada'), await selfOf('bob'), await selfOf('first')]
    for (const what of ['host', 'address', 'id', 'boot', 'key', 'random'] as const) {
      expect(new Set([ada[what], bob[what], first[what]]).size, what).toBe(3)
    }
    expect(ada.names).toBe(first.names)
    expect([await inside('ada', 'echo $WHO'), await inside('bob', 'echo $WHO')]).toEqual(['ada', 'bob'])
    const blocks = async (name: string) => Number(await inside(name, 'stat -f -c %b /'))
    expect((await blocks('ada')) / (await blocks('bob'))).toBeGreaterThan(1.4)
    // Nothing of it is kept from whoever runs containers without root.
    expect(await inside('ada', 'unshare -Urpf --mount-proc cat /proc/self/comm')).toBe('cat')
    // Its services have the environment, too: they were started after it had come.
    await inside('ada', 'systemctl is-system-running --wait || true')
    expect(await inside('ada', 'systemctl --failed --no-legend | wc -l')).toBe('0')
    expect(await inside('ada', 'sudo systemd-run -q --pipe --wait printenv WHO')).toBe('ada')
    expect(await inside('ada', 'sudo journalctl -b -o cat -n 1 | wc -l; sudo ls -d /*/log/journal/*')).toMatch(
      new RegExp(`^1\\n/(run|var)/log/journal/${ada.id}$`),
    )
    const ask = "exec 3<>/dev/tcp/169.254.169.254/80; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3"
    expect(await inside('ada', `bash -c "${ask}"`)).toMatch(/ada/)
  })

  it('sleep, wake, reboot and boot as themselves', async () => {
    await template()
    await lobby(`new eve ${small} --disk 2G`)
    const { random: _, boot, ...eve } = await selfOf('eve')
    await lobby('sleep eve')
    expect(await selfOf('eve')).toMatchObject({ ...eve, boot })
    await product.ssh([`eve@${SERVER_ADDRESS}`, 'sudo reboot'])
    const bootId = async () =>
      (await product.ssh([`eve@${SERVER_ADDRESS}`, 'cat /proc/sys/kernel/random/boot_id'])).stdout.trim()
    await expect.poll(bootId, { timeout: 240_000, interval: 1000 }).not.toMatch(new RegExp(`^(${boot})?$`))
    expect(await selfOf('eve')).toMatchObject(eve)
    await lobby('restart eve')
    expect(await isFromTemplate('eve')).toBe(false)
    expect(await selfOf('eve')).toMatchObject(eve)
  })
})

describe('a vmhost that is killed while it makes a template', () => {
  it('leaves nothing of it', async () => {
    const before = templates()
    // Another size is another template.
    await lobby('new fay --image minimal --memory 448M --cpu 1 --disk 2G')
    await expect.poll(() => product.processes().templates, { timeout: LIMIT_MS, interval: 50 }).toHaveLength(1)
    expect(killOne(product, 'vmhost', Math.random)).toBe(true)
    await expect.poll(() => product.processes().templates, { timeout: LIMIT_MS, interval: 50 }).toEqual([])
    await expect.poll(templates, { timeout: 60_000 }).toEqual(before)
    const taps = await product.outside('ip', ['-n', product.serverNamespace, '-o', 'link'])
    expect(taps.stdout).not.toContain('vm2000000000')
    await inside('fay', 'true')
  })
})
