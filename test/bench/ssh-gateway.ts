/** The gateway side of the SSH benchmarks: a process of its own, so that its CPU and memory can be told apart. */

import { readFileSync } from 'node:fs'
import type { MachineTarget } from '../../gateway/ssh/pool/target.ts'
import type { Keys } from '../../gateway/ssh/relay/fixtures.ts'
import { startGateway } from '../../gateway/ssh/relay/fixtures.ts'
import { checkSsh2 } from '../../gateway/ssh/transport/native.ts'

checkSsh2()
const { keys, target } = JSON.parse(readFileSync(0, 'utf8')) as {
  keys: Keys
  target: MachineTarget & { hostKey: string }
}
const gateway = await startGateway(keys, { target: { ...target, hostKey: Buffer.from(target.hostKey, 'base64') } })
console.log(gateway.port)
process.on('SIGTERM', () => process.exit(0))
