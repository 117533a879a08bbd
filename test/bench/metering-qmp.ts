/**
 * Hypervisors for metering.ts, as far as metering asks anything of them: FOLDER NUMBER. Each answers `query-blockstats`
 * on a socket of its own with what QEMU 7.2 said of a machine's two disks. Says `ready` to its parent.
 */
import { createServer } from 'node:net'
import { join } from 'node:path'
import { createInterface } from 'node:readline'

const [, , folder = '', number = ''] = process.argv

function blockstats(operations: number) {
  const stats = {
    ...{ unmap_operations: 0, unmap_merged: 0, flush_total_time_ns: 131_852, wr_highest_offset: 4_294_967_296 },
    ...{ wr_total_time_ns: 9_184_251, failed_wr_operations: 0, failed_rd_operations: 0, wr_merged: 0 },
    ...{ timed_stats: [], failed_unmap_operations: 0, failed_flush_operations: 0, account_invalid: true },
    ...{ rd_total_time_ns: 251_842_110, invalid_unmap_operations: 0, flush_operations: 12, rd_merged: 0 },
    ...{ account_failed: true, idle_time_ns: 5_221_842_110, invalid_wr_operations: 0, invalid_flush_operations: 0 },
    ...{
      rd_bytes: operations * 4096,
      rd_operations: operations,
      wr_bytes: operations * 8192,
      wr_operations: operations,
    },
  }
  const disk = (node: string) => ({
    device: '',
    parent: { stats: { ...stats }, 'node-name': `${node}-file` },
    stats: { ...stats },
    qdev: `/machine/peripheral/${node}/virtio-backend`,
    'node-name': node,
  })
  return [disk('root'), disk('tools')]
}

let ready = 0
for (let machine = 1; machine <= Number(number); machine++) {
  const server = createServer((socket) => {
    let operations = 0
    const answer = (document: object) => socket.write(`${JSON.stringify(document)}\r\n`)
    answer({ QMP: { version: { qemu: { micro: 22, minor: 2, major: 7 }, package: '' }, capabilities: ['oob'] } })
    createInterface(socket).on('line', (line) => {
      const { execute, id } = JSON.parse(line) as { execute: string; id: unknown }
      answer({ return: execute === 'query-blockstats' ? blockstats(operations++) : {}, id })
    })
    socket.on('error', () => {})
  })
  server.listen(join(folder, `qmp-${machine}`), () => {
    if (++ready === Number(number)) process.send?.('ready')
  })
}
