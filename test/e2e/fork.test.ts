import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest'
import { killOne } from './crash.rounds.ts'
import { type Product, SERVER_ADDRESS, startProduct } from './product.ts'

/** Checkpoints and copies of machines that go on with what they were doing, each as itself. */
let product: Product

/** Several emulated guests on two cores: it is waited for what comes, and not for long where nothing does. */
const LIMIT_MS = 300_000

async function lobby(line: string): Promise<string> {
  const done = await product.lobby(line, { timeoutMs: LIMIT_MS })
  expect(done, `${line}: ${done.stderr}`).toMatchObject({ status: 0 })
  return done.stdout
}
const json = async (line: string) => JSON.parse(await lobby(`${line} --json`)) as Record<string, unknown>

async function inside(name: string, command: string): Promise<string> {
  const done = await product.ssh([`${name}@${SERVER_ADDRESS}`, command], { timeoutMs: LIMIT_MS })
  expect(done, `${name}: ${command}: ${done.stderr}`).toMatchObject({ status: 0 })
  return done.stdout.trim()
}
const count = async (name: string) => Number(await inside(name, 'kill -0 $(cat /dev/shm/pid) && cat /dev/shm/count'))

async function expectCounting(name: string): Promise<number> {
  const before = await count(name)
  await expect.poll(() => count(name), { timeout: LIMIT_MS }).toBeGreaterThan(before)
  expect(await inside(name, 'cd /dev/shm && sha256sum -c sum')).toBe('blob: OK')
  return before
}

type Self = { name: string; address: string; machineId: string; hostKey: string; bootId: string }
async function selfOf(name: string): Promise<Self> {
  const askedAt = Date.now() / 1000
  const lines = await inside(
    name,
    `hostname; ip -4 -o addr show eth0 | awk '{print $4}'; cat /etc/machine-id; sed 's/.* ip=\\([^:]*\\):.*/\\1/' /proc/cmdline
     cat /proc/sys/kernel/random/boot_id; date +%s; ip route | grep -c '^default via 10.42.0.1 dev eth0'`,
  )
  const [host = '', address = '', machineId = '', told = '', bootId = '', now, routes] = lines.split('\n')
  expect(Number(now)).toBeGreaterThan(askedAt - 2)
  expect(Number(now)).toBeLessThan(Date.now() / 1000 + 2)
  expect(routes).toBe('1')
  expect(address).toBe(`${told}/16`)
  const [row] = await product.sql()<{ key: string; address: string }[]>`
    select encode(observed_host_key, 'hex') as key, host(address) as address from machines
    join addresses on machine_id = machines.id where name = ${name} and observed_state = 'running'`
  expect(row?.address).toBe(told)
  return { name: host, address: told, machineId, hostKey: row?.key ?? '', bootId }
}

beforeAll(async () => {
  product = await startProduct()
  await lobby('new demo --image minimal --memory 512M --cpu 1 --disk 2G')
  // Until its init has started all, it has little time for anything else.
  await inside('demo', 'systemctl is-system-running --wait || true')
  const counting = 'n=0; while :; do n=$((n+1)); echo $n > /dev/shm/count; sleep 0.5; done'
  await inside('demo', `setsid sh -c '${counting}' > /dev/null 2>&1 < /dev/null & echo $! > /dev/shm/pid`)
  await inside('demo', 'head -c 5000000 /dev/urandom > /dev/shm/blob; cd /dev/shm && sha256sum blob > sum')
  await inside('demo', 'echo before > written; sync')
})
/** Of one that failed half way, too. */
afterEach(async () => {
  const { vms } = (await json('ls')) as { vms: { vm_name: string }[] }
  for (const { vm_name } of vms) if (vm_name !== 'demo') await lobby(`rm --now -f ${vm_name}`)
})
afterAll(() => product?.[Symbol.asyncDispose]())

describe('a copy of a machine that runs', () => {
  it('goes on with every program, under a name, address, host key and machine id of its own; so does the machine; and it sleeps, wakes and boots as itself', async () => {
    const demo = await selfOf('demo')
    const at = await count('demo')
    expect(await json('cp demo twin')).toMatchObject({ name: 'twin', status: 'running' })
    expect(await expectCounting('twin')).toBeGreaterThanOrEqual(at)
    await expectCounting('demo')
    const twin = await selfOf('twin')
    expect(twin).toMatchObject({ name: 'twin', bootId: demo.bootId })
    for (const what of ['address', 'machineId', 'hostKey'] as const) expect(twin[what], what).not.toBe(demo[what])
    expect(await selfOf('demo')).toEqual(demo)
    await inside('twin', 'echo twin > written; sync')
    expect(await inside('demo', 'cat written')).toBe('before')
    expect(product.processes().hypervisors).toHaveLength(2)
    await lobby('sleep twin')
    await expectCounting('twin')
    expect(await selfOf('twin')).toEqual(twin)
    await product.ssh([`twin@${SERVER_ADDRESS}`, 'sudo reboot'])
    await expect
      .poll(
        async () =>
          (await product.ssh([`twin@${SERVER_ADDRESS}`, 'cat /proc/sys/kernel/random/boot_id'])).stdout.trim(),
        { timeout: 240_000, interval: 1000 },
      )
      .not.toMatch(new RegExp(`^(${twin.bootId})?$`))
    expect(await selfOf('twin')).toMatchObject({ name: 'twin', address: twin.address, machineId: twin.machineId })
    await lobby('restart twin')
    expect(await selfOf('twin')).toMatchObject({ address: twin.address, hostKey: twin.hostKey })
    expect(await inside('twin', 'cat written')).toBe('twin')
  })
})

describe('a checkpoint', () => {
  it('brings a machine back to its moment, and forward again', async () => {
    const demo = await selfOf('demo')
    await inside('demo', 'cp written /dev/shm/written')
    const taken = await json("checkpoint demo 'of now'")
    expect(taken).toMatchObject({ state: 'kept', with_memory: true })
    const at = await count('demo')
    // In its memory and on its disk.
    await inside('demo', 'echo after | tee written > /dev/shm/written; sync')
    const isThen = async (name: string, then: string) =>
      expect(await inside(name, 'echo $(cat written /dev/shm/written)')).toBe(`${then} ${then}`)
    const restored = await json(`restore demo ${taken.id}`)
    expect(restored).toMatchObject({ status: 'running', restored: taken.id })
    await isThen('demo', 'before')
    await expectCounting('demo')
    expect(await selfOf('demo')).toEqual(demo)
    await lobby(`restore demo ${restored.kept_as}`)
    await isThen('demo', 'after')
    expect(await count('demo')).toBeGreaterThan(at)
    await expectCounting('demo')
    await lobby(`restore demo ${taken.id} --as old`)
    await isThen('old', 'before')
    await expectCounting('old')
    const { checkpoints } = (await json('checkpoints demo')) as { checkpoints: { id: number }[] }
    for (const { id } of checkpoints) await lobby(`checkpoint rm demo ${id}`)
    expect(await json('checkpoints demo')).toEqual({ checkpoints: [] })
  })

  it('of the disk alone is what was written by then', async () => {
    await inside('demo', 'echo now > written')
    const taken = await json('checkpoint demo --disk-only')
    expect(taken).toMatchObject({ with_memory: false })
    await lobby(`restore demo ${taken.id} --as disk`)
    expect(await inside('disk', 'cat written')).toBe('now')
    expect((await product.ssh([`disk@${SERVER_ADDRESS}`, 'cat /dev/shm/count'])).status).not.toBe(0)
    await expectCounting('demo')
  })

  it('is taken all the same when the vmhost is killed meanwhile, and the machine goes on', async () => {
    for (const afterMs of [50, 300]) {
      const taking = json('checkpoint demo')
      await new Promise((resolve) => setTimeout(resolve, afterMs))
      killOne(product, 'vmhost', Math.random)
      const taken = await taking
      expect(taken).toMatchObject({ state: 'kept', with_memory: true })
      await expectCounting('demo')
      await lobby(`restore demo ${taken.id} --as again`)
      await expectCounting('again')
      await lobby('rm --now -f again')
      await lobby(`checkpoint rm demo ${taken.id}`)
    }
  })
})

describe('a copy of a machine that does not run', () => {
  it('goes on where the sleeper lies, which sleeps on', async () => {
    await lobby('sleep demo')
    await lobby('cp demo third')
    await expectCounting('third')
    expect((await json('ls demo')).vms).toMatchObject([{ status: 'asleep' }])
    await expectCounting('demo')
  })

  it('boots from the disk of one that is off', async () => {
    await lobby('stop demo')
    await lobby('cp demo fourth')
    expect(await inside('fourth', 'hostname; cat written')).toBe('fourth\nnow')
    expect((await json('ls demo')).vms).toMatchObject([{ status: 'stopped' }])
  })
})
