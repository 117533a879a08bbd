import { execFile, execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { expect, test } from 'vitest'
import { testArtifacts } from '../../test/e2e/artifacts.ts'
import { TestServer } from '../testing/server.ts'

const run = promisify(execFile)
const rounds = Number(process.env.BERTH_METER_ROUNDS ?? 2)

/**
 * A machine, and somebody out there to send to: a namespace behind the server's. What the machine's own card says that
 * it has sent, asked when it sends nothing any more, is what the ledger has of it.
 */
test('the ledger has what a machine sent, to the byte, and when it ran, whenever its vmhost was killed', {
  timeout: 900_000,
}, async () => {
  const folder = mkdtempSync(join(tmpdir(), 'berth-meter-'))
  const server = await TestServer.make(await testArtifacts())
  const outside = `${server.namespace}-out`
  execFileSync('ip', ['netns', 'add', outside])
  try {
    await wire(server.namespace, outside)
    const listener = ['netns', 'exec', outside, 'python3', '-c', taker]
    const taking = execFile('ip', listener)
    await server.start()
    await run('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', join(folder, 'key')])
    const [, key = ''] = readFileSync(join(folder, 'key.pub'), 'utf8').split(' ')
    await server.sql`
      insert into keys (account_id, name, algorithm, public_key, fingerprint)
      values (1, 'test', 'ssh-ed25519', ${Buffer.from(key, 'base64')}, 'test')`
    const id = await server.insert({ cpus: 1, memory_bytes: 512 * 2 ** 20 })
    const [{ address } = { address: '' }] = await server.sql<{ address: string }[]>`
      select host(address) as address from addresses where machine_id = ${id}`
    const inGuest = async (command: string) => {
      const options = [
        'StrictHostKeyChecking=no',
        'UserKnownHostsFile=/dev/null',
        'LogLevel=ERROR',
        `IdentityFile=${join(folder, 'key')}`,
      ]
      const words = options.flatMap((option) => ['-o', option])
      const ssh = ['netns', 'exec', server.namespace, 'ssh', '-F', 'none', ...words, `root@${address}`, command]
      return (await run('ip', ssh, { timeout: 120_000 })).stdout
    }
    let sent = 0
    for (let round = 0; round < rounds; round++) {
      if (round > 0) await server.update(id, { desired_state: 'running', desired_boot: round + 1 })
      await server.until(id, (row) => row.observed_ready_at !== null && row.observed_boot === round + 1, 300_000)
      const talking = inGuest(
        'for i in 1 2 3 4 5 6; do head -c 1500000 /dev/zero > /dev/tcp/198.51.100.10/8000; echo $i; done',
      )
      await sleep(500 + 300 * round)
      await server.end('SIGKILL')
      await talking
      if (round % 2 === 0) await server.start()
      expect(await inGuest('head -c 400000 /dev/zero | tr "\\0" x')).toHaveLength(400_000)
      // Off by itself, when nothing is sent any more: the last that it says is how much that was.
      await inGuest(
        `nohup setsid sh -c 'sleep 4; ip link set eth0 down; sleep 1; cd /sys/class/net/eth0/statistics;
          echo "has sent $(cat tx_bytes) in $(cat tx_packets)." > /dev/console; sleep 1; sync; echo o > /proc/sysrq-trigger' > /dev/null 2>&1 &`,
      )
      if (round % 2 === 1) {
        await sleep(12_000)
        await server.start()
      }
      await server.until(id, (row) => row.observed_state === 'stopped', 120_000)
      const said = [
        ...readFileSync(join(server.dataDirectory, 'store/machines', String(id), 'console.log'), 'latin1').matchAll(
          /has sent (\d+) in (\d+)\./g,
        ),
      ]
      expect(said).toHaveLength(round + 1)
      const [, bytes, packets] = said.at(-1) ?? []
      sent += Number(bytes) - 14 * Number(packets)
      await expect.poll(async () => (await ledger(server, id)).sent, { timeout: 60_000 }).toBe(sent)
    }
    const { through, spans } = await ledger(server, id)
    // What SSH carried went through the gateway's address, the rest did not.
    expect(through).toBeGreaterThan(rounds * 400_000)
    expect(sent - through).toBeGreaterThan(rounds * 6 * 1_500_000)
    expect(spans.filter(({ state }) => state === 'running').length).toBeGreaterThanOrEqual(rounds)
    for (const [index, span] of spans.entries()) {
      const next = spans[index + 1]
      if (next) expect(next.started_at, JSON.stringify(spans)).toEqual(span.ended_at)
    }
    taking.kill()
  } finally {
    await server[Symbol.asyncDispose]()
    execFileSync('ip', ['netns', 'del', outside])
    rmSync(folder, { recursive: true })
  }
})

const taker = `
import socket
s = socket.create_server(("198.51.100.10", 8000))
while True:
    c, _ = s.accept()
    while c.recv(65536): pass
    c.close()
`

async function wire(host: string, outside: string): Promise<void> {
  const commands = [
    ['-n', host, 'link', 'add', 'eth0', 'type', 'veth', 'peer', 'name', 'eth0', 'netns', outside],
    ['-n', host, 'addr', 'add', '203.0.113.2/24', 'dev', 'eth0'],
    ['-n', host, 'link', 'set', 'eth0', 'up'],
    ['-n', host, 'route', 'add', 'default', 'via', '203.0.113.1'],
    ['-n', outside, 'link', 'set', 'lo', 'up'],
    ['-n', outside, 'addr', 'add', '203.0.113.1/24', 'dev', 'eth0'],
    ['-n', outside, 'addr', 'add', '198.51.100.10/32', 'dev', 'lo'],
    ['-n', outside, 'link', 'set', 'eth0', 'up'],
  ]
  for (const command of commands) await run('ip', command)
}

async function ledger(server: TestServer, id: number) {
  const [used] = await server.sql<{ sent: number; through: number }[]>`
    select coalesce(sum(direct + gateway), 0)::bigint as sent, coalesce(sum(gateway), 0)::bigint as through from (
      select direct_out_bytes - coalesce(lag(direct_out_bytes) over one, 0) as direct,
        gateway_out_bytes - coalesce(lag(gateway_out_bytes) over one, 0) as gateway
      from transfer_readings where machine_id = ${id} window one as (partition by series order by sequence)) as uses`
  const spans = await server.sql<{ state: string; started_at: Date; ended_at: Date }[]>`
    select state, started_at, ended_at from machine_spans where machine_id = ${id} order by started_at`
  return { sent: used?.sent ?? 0, through: used?.through ?? 0, spans }
}
