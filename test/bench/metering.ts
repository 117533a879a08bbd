/**
 * What metering costs, of money and of load: 200 taps that all carry something, no guests, a real database. Counted is
 * what the process that meters takes, and every `nft` that it runs; of Postgres its back ends, apart.
 *
 *   node test/bench/metering.ts [minutes, default 10] [machines, default 200]
 */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { connect } from '../../migrations/connect.ts'
import { embeddedUrl, startEmbedded, stopEmbedded } from '../../migrations/embedded.ts'
import { migrate } from '../../migrations/migrate.ts'
import { backendsSeconds } from './backends.ts'
import { report, show, spread, surroundings } from './ssh-lab.ts'

/** Holds each tap as its machine's user, and sends a datagram a second from each. */
const sender = `
import fcntl, os, struct, sys, time
taps = []
for number in range(1, int(sys.argv[1]) + 1):
    fd = os.open("/dev/net/tun", os.O_RDWR)
    os.seteuid(2000000 + number)
    fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH14x", b"vm%d" % number, 0x5002))
    os.seteuid(0)
    source = bytes([10, 42, number >> 8, (number & 255) + 10])
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 1028, 0, 0, 64, 17, 0, source, bytes([198, 51, 100, 10]))
    total = sum(struct.unpack("!10H", ip)); total = (total & 0xFFFF) + (total >> 16)
    ip = ip[:10] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + ip[12:]
    frame = bytes([2, 0xbe, 10, 42, 0, 1, 2, 0xbe]) + source + b"\\x08\\0" + ip + struct.pack("!HHHH", 9, 9, 1008, 0) + bytes(1000)
    taps.append((fd, bytes(10) + frame))
print("ready", flush=True)
while True:
    for fd, frame in taps: os.write(fd, frame)
    time.sleep(1)
`

const minutes = Number(process.argv[2] ?? 10)
const machines = Number(process.argv[3] ?? 200)
const namespace = `berth-bench-${process.pid}`
const folder = mkdtempSync(join(tmpdir(), 'berth-metering-'))
const children: ChildProcess[] = []

const inside = (...command: string[]): ChildProcess => {
  const child = spawn('ip', ['netns', 'exec', namespace, ...command], { stdio: ['pipe', 'pipe', 'inherit', 'ipc'] })
  children.push(child)
  return child
}

/** CPU of this process and of its children that have ended, in seconds. @see proc_pid_stat(5), fields 14 to 17 */
function withChildrenSeconds(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, 'latin1')
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  return fields.slice(11, 15).reduce((sum, ticks) => sum + Number(ticks), 0) / 100
}

try {
  execFileSync('ip', ['netns', 'add', namespace])
  execFileSync('ip', ['-n', namespace, 'link', 'set', 'lo', 'up'])
  chmodSync(folder, 0o755)
  await startEmbedded(folder)
  const owner = connect({ url: embeddedUrl(folder), role: 'owner', max: 1 })
  await migrate(owner)
  await owner`insert into hosts (name, lease_epoch) values ('bench', 1)`
  await owner`insert into accounts default values`
  await owner`
    insert into machines (account_id, host_id, name, image, cpus, memory_bytes, disk_bytes, observed_state)
    select 1, 1, 'm' || n, 'base', 1, 1, 1, 'running' from generate_series(1, ${machines}::int) n`
  const hypervisors = inside(process.execPath, join(import.meta.dirname, 'metering-qmp.ts'), folder, String(machines))
  await once(hypervisors, 'message')
  const meter = inside(
    process.execPath,
    join(import.meta.dirname, 'metering-vmhost.ts'),
    embeddedUrl(folder),
    join(folder, 'ledger.json'),
    String(machines),
    folder,
  )
  await once(meter, 'message')
  const traffic = inside('python3', '-c', sender, String(machines))
  await once(traffic.stdout ?? traffic, 'data')
  // What starting costs is not what metering costs.
  await sleep(5_000)
  const pid = meter.pid ?? 0
  const each: number[] = []
  const database: number[] = []
  for (let minute = 0; minute < minutes; minute++) {
    const before = [withChildrenSeconds(pid), backendsSeconds(folder)] as const
    await sleep(60_000)
    each.push(((withChildrenSeconds(pid) - before[0]) / 60) * 100)
    database.push(((backendsSeconds(folder) - before[1]) / 60) * 100)
  }
  type Written = { readings: number; spans: number; samples: number; bytes: number }
  const [written] = await owner<Written[]>`
    select (select count(*) from transfer_readings)::int as readings, (select count(*) from machine_spans)::int as spans,
      (select count(*) from load_samples)::int as samples, (
        select sum(pg_total_relation_size(c.oid))::bigint from pg_class c join pg_namespace n on n.oid = relnamespace
        where nspname = 'partitions' and relkind = 'r' and relname like 'load_samples%') as bytes`
  const { readings, spans, samples, bytes } = written ?? { readings: 0, spans: 0, samples: 0, bytes: 0 }
  await owner.end()
  const figures = { 'metering, % of a core': spread(each), 'its database, % of a core': spread(database) }
  const rows = Object.fromEntries(Object.entries(figures).map(([name, figure]) => [name, show(figure)]))
  const each10s = `${Math.round(bytes / Math.max(samples, 1))} bytes each with their index`
  const facts = `${readings} readings, ${spans} spans, ${samples} samples (${each10s}) of ${machines} machines in ${minutes} minutes`
  report('Metering', await surroundings(), { ...rows, facts }, figures)
  if (readings < machines || samples < machines * 5 * minutes || (minutes > 5 && spans < machines))
    throw new Error('nothing was metered')
} finally {
  for (const child of children) {
    if (child.exitCode !== null || child.signalCode !== null) continue
    const exit = once(child, 'exit')
    child.kill('SIGKILL')
    await exit
  }
  execFileSync('ip', ['netns', 'delete', namespace])
  await stopEmbedded(folder)
  rmSync(folder, { recursive: true })
}
