/**
 * The part of a vmhost that meters, for metering.ts: DATABASE_URL FILE MACHINES FOLDER, where metering-qmp.ts listens.
 * Says `ready` to its parent.
 */
import { join } from 'node:path'
import pino from 'pino'
import { connect } from '../../migrations/connect.ts'
import { bootId } from '../../vmhost/hypervisor/probe.ts'
import { rootCounters } from '../../vmhost/hypervisor/qemu-process.ts'
import { connectQmp } from '../../vmhost/hypervisor/qmp.ts'
import { systemClocks } from '../../vmhost/meter/clock.ts'
import { LedgerRows } from '../../vmhost/meter/ledger-rows.ts'
import { LoadRows } from '../../vmhost/meter/load-rows.ts'
import { LoadSampler, type LoadSource } from '../../vmhost/meter/load-sampler.ts'
import { Meter } from '../../vmhost/meter/meter.ts'
import { createNetwork } from '../../vmhost/network/network.ts'

const [, , url = '', path = '', machines = '', folder = ''] = process.argv
const log = pino({ level: 'warn' }, pino.destination(2))
const network = createNetwork({ network: '10.42.0.0/16', allow: [], publicPorts: [] }, { log })
await network.prepareHost()
const ids = Array.from({ length: Number(machines) }, (_, index) => index + 1)
await Promise.all(
  ids.map((machineId) => {
    const address = `10.42.${machineId >> 8}.${(machineId & 255) + 10}`
    return network.ensureMachine({ machineId, address, uid: 2_000_000 + machineId })
  }),
)
const sql = connect({ url, role: 'berth_vmhost', max: 2 })
const lease = { hostId: 1, hostName: 'bench', epoch: 1 }
const meter = await Meter.open({
  path,
  rows: new LedgerRows(sql, lease),
  clocks: systemClocks(bootId()),
  everyMs: 60_000,
  readTransfer: () => network.readTransfer(),
  lastWrite: async () => undefined,
  log,
  onLeaseLost: () => process.exit(1),
})
const size = { cpus: 1, memoryBytes: 2 ** 30, diskBytes: 2 ** 30 }
for (const id of ids) meter.note(id, { state: 'running', ...size, pid: process.pid })
await meter.goOn()
meter.start()
// This process stands for every hypervisor: it has as many threads.
const guest = { memoryUsedBytes: 2 ** 29, filesystemUsedBytes: 2 ** 30, filesystemBytes: 2 ** 34 }
const sources = await Promise.all(
  ids.map(async (id): Promise<LoadSource> => {
    const qmp = await connectQmp(join(folder, `qmp-${id}`), { onEvent: () => {}, timeoutMs: 10_000 })
    const diskCounters = async () => rootCounters(await qmp.execute('query-blockstats'))
    return {
      id,
      state: 'running',
      runs: { pid: process.pid, cpus: 1, memoryBytes: 2 ** 30, guest, hypervisor: { diskCounters } },
    }
  }),
)
const sampler = new LoadSampler({
  sources: () => sources,
  rows: new LoadRows(sql, lease),
  log,
  onLeaseLost: () => process.exit(1),
})
sampler.start()
process.send?.('ready')
