import { Socket } from 'node:net'
import { expect, test } from 'vitest'
import { startWorld } from './commands/testing/world.ts'
import { createApp } from './create-app.ts'

test('connections to a machine that ran before the gateway came are closed when it goes to the trash', async () => {
  await using world = await startWorld()
  expect((await world.run('new demo --no-wait')).status).toBe(0)
  const machine = await world.app.machines.find('demo', world.owner)
  const id = machine?.id ?? 0
  await world.app.machines.whenReady(id, world.owner, { signal: new AbortController().signal, knock: 'a test' })
  const { settings, log, hostPublicKey, codeSecret } = world.app
  const { sql } = world.gateway
  const { app, close } = await createApp({ settings, sql, log, hostPublicKey, codeSecret, gatewayPrivateKey: '' })
  try {
    let ended = 0
    app.watches.of(id).attach(new Socket(), { onEnded: () => ended++ })
    expect((await world.run('rm demo')).status).toBe(0)
    await expect.poll(() => ended, { timeout: 60_000 }).toBeGreaterThan(0)
  } finally {
    await close()
  }
})
