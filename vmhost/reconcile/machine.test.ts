import pino from 'pino'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { Machine } from './machine.ts'
import type { MachineEvent, MachineRow, Observation } from './rows.ts'
import { Slots } from './slots.ts'
import type { World } from './world.ts'

/** A machine on a server where no place for a start is free: nothing ever gets as far as a hypervisor. */

const first: MachineRow = {
  id: 1,
  accountId: 1,
  name: 'demo',
  image: 'minimal',
  cpus: 1,
  memoryBytes: 2 ** 28,
  diskBytes: 2 ** 30,
  observedDiskBytes: 2 ** 30,
  env: {},
  command: 'auto',
  desiredState: 'running',
  desiredBoot: 1,
  observedState: 'running',
  observedBoot: 1,
  observedReason: null,
  isReady: false,
  token: '00000000-0000-4000-8000-000000000000',
  hostKey: null,
  address: '10.42.0.2',
  asleepBecause: null,
  restore: null,
  hasCheckpointWork: false,
}

let row: MachineRow
let reads: (() => void)[]
let recorded: string[]
let stop: AbortController
let machine: Machine

beforeEach(async () => {
  row = first
  reads = []
  recorded = []
  stop = new AbortController()
  const slots = new Slots(1)
  await slots.acquire(stop.signal)
  const world: Partial<World> = {
    slots,
    signal: stop.signal,
    store: {
      directoryOf: () => '/nonexistent',
      findMachine: async () => undefined,
    } as Partial<World['store']> as World['store'],
    log: pino({ level: 'silent' }),
    rows: {
      one: async () => {
        const now = row
        reads.shift()?.()
        return now
      },
    } as Partial<World['rows']> as World['rows'],
    meter: { note: () => {}, goOn: async () => {}, start: () => {} },
    outbox: {
      flushed: async () => {},
      report: (_: number, seen: Observation) => {
        const { observedState = row.observedState, observedReason = row.observedReason } = seen
        row = { ...row, observedState, observedReason }
      },
      record: ({ kind }: MachineEvent) => recorded.push(kind),
    } as Partial<World['outbox']> as World['outbox'],
  }
  machine = new Machine(row, world as World)
})

afterEach(async () => {
  stop.abort()
  await machine.release()
})

test('a restart of a machine that failed says that it starts, also while it waits for its turn', async () => {
  row = {
    ...first,
    hostKey: Buffer.of(1),
    observedState: 'failed',
    observedReason: 'Its kernel panicked',
    desiredBoot: 2,
  }
  void machine.poke()
  await expect.poll(() => row).toMatchObject({ observedState: 'running', observedReason: null })
  row = { ...row, desiredState: 'stopped' }
  void machine.poke()
  await expect.poll(() => row.observedState).toBe('stopped')
})

test('a machine that is wanted back while it goes to the trash was never there', async () => {
  row = { ...first, desiredState: 'trashed' }
  reads = [
    () => {
      row = { ...row, desiredState: 'running' }
      void machine.poke()
    },
  ]
  void machine.poke()
  await expect.poll(() => reads).toEqual([])
  row = { ...row, desiredState: 'stopped' }
  void machine.poke()
  await expect.poll(() => recorded).toEqual(['machine.stopped'])
})
