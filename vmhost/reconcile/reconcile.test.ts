import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import pino from 'pino'
import { afterEach, expect, test, vi } from 'vitest'
import { testDatabase } from '../../test/database.ts'
import { takeLease } from './lease.ts'
import { createReconciler, type ReconcilerOptions } from './reconcile.ts'
import { Rows } from './rows.ts'

afterEach(() => {
  vi.useRealTimers()
})

test('the lease is renewed while the start takes longer than it lasts', async () => {
  await using database = await testDatabase()
  const home = mkdtempSync(join(tmpdir(), 'berth-reconcile-'))
  const sql = database.as('berth_vmhost')
  const owner = database.as('owner')
  const rows = new Rows(sql, await takeLease(sql, home))
  // After the machines were adopted.
  const reached = Promise.withResolvers<void>()
  const end = Promise.withResolvers<void>()
  const meter = {
    note: () => {},
    start: () => {},
    goOn: () => {
      reached.resolve()
      return end.promise
    },
  }
  const log = pino({ level: 'silent' })
  const parts: Partial<ReconcilerOptions['world']> = {
    rows,
    meter,
    driver: { name: 'qemu' } as ReconcilerOptions['world']['driver'],
    store: {} as ReconcilerOptions['world']['store'],
    log,
  }
  let isLost = false
  const reconciler = createReconciler({
    world: parts as ReconcilerOptions['world'],
    templates: {} as ReconcilerOptions['templates'],
    publicPorts: [],
    log,
    onLeaseLost: () => {
      isLost = true
    },
    onUnknownDisk: () => {},
  })
  vi.useFakeTimers({ toFake: ['setInterval', 'clearInterval'] })
  const started = reconciler.start()
  started.catch(() => {})
  try {
    await reached.promise
    const isLive = async () => (await owner`select lease_expires_at > now() as live from hosts`)[0]?.live
    await owner`update hosts set lease_expires_at = now() - interval '1 second'`
    expect(await isLive()).toBe(false)
    vi.advanceTimersByTime(30_000)
    await expect.poll(isLive, { timeout: 60_000 }).toBe(true)
    // Overtaken, it hears of that too.
    await owner`update hosts set lease_epoch = lease_epoch + 1`
    vi.advanceTimersByTime(30_000)
    await expect.poll(() => isLost, { timeout: 60_000 }).toBe(true)
  } finally {
    end.reject(new Error('enough'))
    await expect(started).rejects.toThrow('enough')
    await reconciler.close()
    rmSync(home, { recursive: true })
  }
})
