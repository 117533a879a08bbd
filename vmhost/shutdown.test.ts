import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, test, vi } from 'vitest'
import { FaultLab, machineSize } from './testing/faults/lab.ts'

vi.setConfig({ testTimeout: 120_000, hookTimeout: 120_000 })

/** The real process and real signals, with machines under it that hold something in memory. */

let lab: FaultLab
let bin: string

beforeAll(async () => {
  bin = mkdtempSync(join(tmpdir(), 'berth-systemctl-'))
  lab = await FaultLab.make()
  await lab.server.end()
})
afterAll(async () => {
  await lab[Symbol.asyncDispose]()
  rmSync(bin, { recursive: true })
})

/** systemd, as far as it is asked; it exits with a failure for every answer but `running`. */
function systemIs(state: string): void {
  const program = join(bin, 'systemctl')
  writeFileSync(program, `#!/bin/sh\necho ${state}\ntest ${state} = running\n`)
  chmodSync(program, 0o755)
}

const start = () => lab.start({ PATH: `${bin}:${process.env.PATH ?? ''}` })

async function machineThatWrote(): Promise<number> {
  await start()
  const id = await lab.server.insert(machineSize)
  await lab.server.until(id, ({ observed_ready_at: readyAt }) => readyAt !== null, 90_000)
  await lab.write(id, 1)
  return id
}

async function remove(id: number): Promise<void> {
  await lab.server.update(id, { desired_state: 'gone' })
  await lab.server.until(id, (row) => row.observed_state === 'gone', 90_000)
  await lab.server.end()
}

test.each([
  ['SIGPWR', 'running'],
  ['SIGTERM', 'stopping'],
] as const)(
  'a server that goes down (%s, systemd says %s) has its machines sleep, and wakes them when it is back',
  async (signal, state) => {
    systemIs(state)
    const id = await machineThatWrote()
    expect(await lab.server.end(signal)).toBe(0)
    expect(await lab.server.hypervisors(id)).toEqual([])
    const [row] = await lab.server
      .sql`select desired_state, observed_state, observed_asleep_because from machines where id = ${id}`
    expect(row).toEqual({
      desired_state: 'running',
      observed_state: 'asleep',
      observed_asleep_because: 'its server shut down',
    })
    await start()
    await lab.server.until(id, ({ observed_ready_at: readyAt }) => readyAt !== null, 90_000)
    const { disk, memory } = await lab.held(id)
    expect(memory).toEqual(disk)
    expect(memory?.epoch).toBe(1)
    await remove(id)
  },
)

test('a restart of Berth (SIGTERM, systemd says running) is noticed by no machine', async () => {
  systemIs('running')
  const id = await machineThatWrote()
  const [pid] = await lab.server.hypervisors(id)
  expect(await lab.server.end('SIGTERM')).toBe(0)
  expect(await lab.server.hypervisors(id)).toEqual([pid])
  expect(await lab.server.machine(id)).toMatchObject({ observed_state: 'running' })
  await start()
  expect(await lab.server.hypervisors(id)).toEqual([pid])
  expect((await lab.held(id)).memory?.epoch).toBe(1)
  await remove(id)
})
