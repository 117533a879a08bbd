import { readFileSync } from 'node:fs'
import { setTimeout as delay } from 'node:timers/promises'
import { expect, test } from 'vitest'
import { parseKeyLine } from '../accounts/public-key.ts'
import { makeKeys } from '../ssh/relay/fixtures.ts'
import { startSshd } from '../ssh/testing/sshd.ts'
import { Lab } from './testing/namespaces.ts'
import type { Said } from './testing/station.ts'

const SSH_PORT = 2022
const TUNNELS_PORT = 7000
const PATIENT = { timeout: 60_000, interval: 20 }
/** Longer than four of the pool's keepalives. */
const QUIET_MS = 500
/** The kernel would try again after 0.2, 0.6, 1.4, 3 and 6.2 s: what was not held would come three seconds late. */
const WAITING_MS = 3_100
const SOON_MS = 1_500
/** The machine's own kernel tries again as well; the gateway's ordinary keepalive would come after five seconds. */
const PROBED_SOON_MS = 3_500

async function start() {
  const stack = new AsyncDisposableStack()
  try {
    const keys = stack.use(makeKeys())
    const lab = stack.use(await Lab.create())
    const authorizedKeys = [readFileSync(`${keys.gatewayKey}.pub`, 'utf8')]
    const listen = `${lab.address}:${SSH_PORT}`
    stack.use(await startSshd({ listen, hostKey: keys.hostKey, authorizedKeys, namespace: lab.machine }))
    const tunnels = lab.tunnels(TUNNELS_PORT)
    await expect.poll(() => tunnels.lines, PATIENT).toContain('listening')
    const station = await lab.station({
      address: lab.address,
      sshPort: SSH_PORT,
      privateKey: readFileSync(keys.gatewayKey, 'utf8'),
      hostKey: parseKeyLine(readFileSync(`${keys.hostKey}.pub`, 'utf8')).key.blob.toString('base64'),
    })
    station.ask({ do: 'session' })
    await station.until((said) => said.is === 'open' && said.name === 'session')
    for (const name of ['idle', 'left']) {
      station.ask({ do: 'tunnel', name, port: TUNNELS_PORT })
      await station.until((said) => said.is === 'heard' && said.name === name)
    }
    return { lab, station, tunnels, [Symbol.asyncDispose]: () => stack.disposeAsync() }
  } catch (error) {
    await stack.disposeAsync()
    throw error
  }
}

const heard =
  (name: string, text: string) =>
  (said: Said): boolean =>
    said.is === 'heard' && said.name === name && said.text.includes(text)

test('what is connected to a machine lives through its sleep, and what is typed meanwhile arrives at once', async () => {
  await using world = await start()
  const { lab, station, tunnels } = world
  station.ask({ do: 'type', text: 'before\n' })
  await station.until(heard('session', 'before'))

  station.ask({ do: 'see', state: 'asleep' })
  // As a vmhost does: the machine still hears what was sent before.
  await delay(200)
  await lab.linkDown()
  const asleepFrom = station.said.length
  station.ask({ do: 'resize' })
  station.ask({ do: 'destroy', name: 'left' })
  await delay(QUIET_MS)
  expect(station.said.slice(asleepFrom)).toEqual([])
  station.ask({ do: 'type', text: 'while it ' })
  station.ask({ do: 'type', text: 'slept\n' })
  station.ask({ do: 'send', name: 'idle', text: 'in a tunnel\n' })
  await station.until((said) => said.is === 'wanted', asleepFrom)
  // Nothing was handed to the kernel, which would go on trying by its own clocks: Recv-Q, Send-Q, and no timer.
  for (const line of await lab.sockets()) expect(line).toMatch(/^0 +0 +\S+ +\S+ *$/)
  expect((await lab.sockets()).length).toBe(3)
  await delay(WAITING_MS)

  station.ask({ do: 'see', state: 'waking' })
  await lab.linkUp()
  const backAt = performance.now()
  station.ask({ do: 'see', state: 'running' })
  await station.until(heard('session', 'while it slept'), asleepFrom)
  await station.until(heard('idle', 'in a tunnel'), asleepFrom)
  expect(performance.now() - backAt).toBeLessThan(SOON_MS)
  await expect.poll(() => tunnels.lines.filter((line) => line === 'closed').length, PATIENT).toBe(1)
  expect(station.said.slice(asleepFrom).filter(({ is }) => is === 'wanted' || is === 'closed')).toEqual([
    { is: 'wanted', because: 'an SSH session' },
  ])
  // And it goes on, keepalives and all.
  station.ask({ do: 'type', text: 'after\n' })
  await station.until(heard('session', 'after'), asleepFrom)
}, 30_000)

test('a machine that has something to say when it wakes is heard, though nobody said anything to it', async () => {
  await using world = await start()
  const { lab, station } = world
  station.ask({ do: 'see', state: 'asleep' })
  await delay(200)
  await lab.linkDown()
  await delay(QUIET_MS)
  const before = station.said.length
  await lab.linkUp()
  const backAt = performance.now()
  station.ask({ do: 'see', state: 'running' })
  await station.until(heard('idle', 'tick'), before)
  expect(performance.now() - backAt).toBeLessThan(PROBED_SOON_MS)
}, 30_000)

test('a machine that lost its memory says so itself, at once', async () => {
  await using world = await start()
  const { lab, station } = world
  station.ask({ do: 'see', state: 'asleep' })
  await delay(200)
  await lab.linkDown()
  await lab.reboot()
  await lab.linkUp()
  const backAt = performance.now()
  station.ask({ do: 'see', state: 'running' })
  for (const name of ['session', 'idle']) {
    await station.until((said) => said.is === 'closed' && said.name === name)
  }
  expect(performance.now() - backAt).toBeLessThan(PROBED_SOON_MS)
}, 30_000)
