import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { killOne } from './crash.rounds.ts'
import { type Product, SERVER_ADDRESS, startProduct } from './product.ts'

/** A machine that sleeps and wakes with everything it was doing, whoever is killed meanwhile. */
let product: Product
let machineId: number
const demo = `demo@${SERVER_ADDRESS}`

type Seen = {
  observed_state: string
  observed_reason: string | null
  observed_asleep_because: string | null
  observed_saved_bytes: number | null
  ready: boolean
}

const seen = async (): Promise<Seen> => {
  const [row] = await product.sql()<Seen[]>`
    select observed_state, observed_reason, observed_asleep_because, observed_saved_bytes,
      observed_ready_at is not null as ready from machines where id = ${machineId}`
  if (!row) throw new Error('no machine')
  return row
}
/** As a gateway does it. */
const want = (state: 'asleep' | 'running') =>
  product.sql('berth_gateway')`update machines set desired_state = ${state} where id = ${machineId}`

const until = (state: 'asleep' | 'running') =>
  expect
    .poll(async () => [(await seen()).observed_state, (await seen()).ready], { timeout: 120_000, interval: 50 })
    .toEqual([state, state === 'running'])

async function inside(command: string): Promise<string> {
  const done = await product.ssh([demo, command])
  expect(done, done.stderr).toMatchObject({ status: 0 })
  return done.stdout.trim()
}

/** What a machine does that is written down nowhere but in its memory. */
async function startCounting(): Promise<void> {
  const count = 'n=0; while :; do n=$((n+1)); echo $n > /dev/shm/count; sleep 0.5; done'
  await inside(`setsid sh -c '${count}' > /dev/null 2>&1 < /dev/null & echo $! > /dev/shm/pid`)
  await inside('head -c 5000000 /dev/urandom > /dev/shm/blob; cd /dev/shm && sha256sum blob > sum')
}

async function expectStillCounting(): Promise<void> {
  // Emulated beside others, a guest that has just woken may let the gateway's patience for one connection run out.
  await expect.poll(async () => (await product.ssh([demo, 'true'])).status, { timeout: 120_000 }).toBe(0)
  const [before, now] = (await inside('cat /dev/shm/count; date +%s; kill -0 $(cat /dev/shm/pid)')).split('\n')
  // The clock is right before anybody can be there to see it.
  expect(Math.abs(Number(now) - Date.now() / 1000)).toBeLessThan(10)
  expect(await inside('cd /dev/shm && sha256sum -c sum')).toBe('blob: OK')
  await expect
    .poll(async () => Number(await inside('cat /dev/shm/count')), { timeout: 20_000 })
    .toBeGreaterThan(Number(before))
  expect(Number(before)).toBeGreaterThan(0)
}

beforeAll(async () => {
  product = await startProduct()
  const made = await product.lobby('new demo --image minimal --memory 512M --cpu 1 --disk 2G')
  expect(made, made.stderr).toMatchObject({ status: 0 })
  machineId = (await product.sql()<{ id: number }[]>`select id from machines where name = 'demo'`)[0]?.id ?? 0
  await startCounting()
})
afterAll(() => product?.[Symbol.asyncDispose]())

describe('a machine that sleeps', () => {
  it('is no process any more, and counts on when it wakes, three times', async () => {
    for (let cycle = 0; cycle < 3; cycle++) {
      await inside(`echo ${cycle} > written; sha256sum written > sums`)
      await want('asleep')
      await until('asleep')
      expect(product.processes().hypervisors).toEqual([])
      expect(await seen()).toMatchObject({ observed_asleep_because: 'told to', observed_reason: null })
      expect((await seen()).observed_saved_bytes).toBeLessThan(256 * 2 ** 20)
      await want('running')
      await until('running')
      await expectStillCounting()
      expect(await inside('sha256sum -c sums')).toBe('written: OK')
    }
  })

  it('stays asleep, and wakes the same, when the server’s Berth is started anew', async () => {
    await want('asleep')
    await until('asleep')
    await product.stop()
    await product.start()
    await until('asleep')
    expect(product.processes().hypervisors).toEqual([])
    await want('running')
    await until('running')
    await expectStillCounting()
  })

  it('keeps all it was doing when its vmhost is killed while it falls asleep, and while it wakes', async () => {
    for (const afterMs of [100, 700, 1_500, 2_500]) {
      for (const state of ['asleep', 'running'] as const) {
        await want(state)
        await new Promise((resolve) => setTimeout(resolve, afterMs))
        expect(killOne(product, 'vmhost', Math.random)).toBe(true)
        await until(state)
      }
      expect((await seen()).observed_reason).toBeNull()
      await expectStillCounting()
    }
  })

  it('that is restarted boots from its disk, on which everything is that it had written', async () => {
    await inside('head -c 300000 /dev/urandom > late; sha256sum late > late.sum')
    await want('asleep')
    await until('asleep')
    await product.sql('berth_gateway')`
      update machines set desired_state = 'running', desired_boot = desired_boot + 1 where id = ${machineId}`
    await until('running')
    expect(await inside('sha256sum -c late.sum')).toBe('late: OK')
    expect(await inside('cat /dev/shm/count 2> /dev/null || echo gone')).toBe('gone')
  })
})
