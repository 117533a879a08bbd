/** The part of a vmhost that meters, for metering.ts: DATABASE_URL FILE MACHINES. Says `ready` to its parent. */
import pino from 'pino'
import { connect } from '../../migrations/connect.ts'
import { bootId } from '../../vmhost/hypervisor/probe.ts'
import { systemClocks } from '../../vmhost/meter/clock.ts'
import { LedgerRows } from '../../vmhost/meter/ledger-rows.ts'
import { Meter } from '../../vmhost/meter/meter.ts'
import { createNetwork } from '../../vmhost/network/network.ts'

const [, , url = '', path = '', machines = ''] = process.argv
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
const meter = await Meter.open({
  path,
  rows: new LedgerRows(sql, { hostId: 1, hostName: 'bench', epoch: 1 }),
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
process.send?.('ready')
