/**
 * Idle sessions: connections of one key with a shell each, silent for a while; growth of the gateway's memory by their
 * number.
 *
 *   node test/bench/ssh-idle.ts [sessions, default 500] [seconds of silence, default 60]
 */

import { readFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import ssh2, { type Client } from 'ssh2'
import { report, rssBytes, show, spread, startLab, surroundings } from './ssh-lab.ts'

const sessions = Number(process.argv[2] ?? 500)
const silenceMs = Number(process.argv[3] ?? 60) * 1000
const atOnce = 20

await using lab = await startLab()
const privateKey = readFileSync(lab.keys.clientKey)
// One session that comes and goes: what every process needs once is not the sessions'
;(await openShell()).end()
await sleep(500)

const beforeBytes = rssBytes(lab.gateway.pid)
const clients: Client[] = []
while (clients.length < sessions) {
  const some = Math.min(atOnce, sessions - clients.length)
  clients.push(...(await Promise.all(Array.from({ length: some }, () => openShell()))))
}
const openedBytes = rssBytes(lab.gateway.pid)
await sleep(silenceMs)
const silentBytes = rssBytes(lab.gateway.pid)
for (const client of clients) client.end()

const perSessionKib = (bytes: number) => spread([(bytes - beforeBytes) / sessions / 1024])
const figures = {
  'idle gateway, MiB': spread([beforeBytes / 2 ** 20]),
  'per session when opened, KiB': perSessionKib(openedBytes),
  'per session after the silence, KiB': perSessionKib(silentBytes),
}
const rows = Object.fromEntries(Object.entries(figures).map(([name, figure]) => [name, show(figure, 1)]))
report(`Idle SSH sessions, ${sessions}, ${silenceMs / 1000} s`, await surroundings(), rows, figures)

function openShell(): Promise<Client> {
  const { promise, resolve, reject } = Promise.withResolvers<Client>()
  const client = new ssh2.Client()
  client.on('error', reject)
  client.once('ready', () => {
    client.shell((error, channel) => {
      if (error) {
        reject(error)
        return
      }
      // The prompt: the shell is there
      channel.once('data', () => resolve(client))
      channel.resume()
    })
  })
  client.connect({ host: '127.0.0.1', port: lab.gateway.port, username: 'demo', privateKey, readyTimeout: 120_000 })
  return promise
}
