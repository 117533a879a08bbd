/** The network in a process of its own, so that tests can put it into a namespace and kill it: calls come over IPC. */
import type { TransferReadings } from '../counters.ts'
import { createNetwork } from '../network.ts'
import type { MachineNetwork, NetworkSettings } from '../types.ts'

export type Call =
  | { readonly do: 'prepareHost' }
  | { readonly do: 'ensureMachine'; readonly machine: MachineNetwork }
  | { readonly do: 'ensureBareTap'; readonly machineId: number; readonly uid: number }
  | { readonly do: 'removeMachine'; readonly machineId: number }
  | { readonly do: 'reconcile'; readonly wanted: readonly MachineNetwork[] }
  | { readonly do: 'readTransfer' }
  | { readonly do: 'refuseToKeep' }
  | { readonly do: 'startMetadata' }
  | { readonly do: 'rename'; readonly address: string; readonly name: string }
  | { readonly do: 'close' }

export type Answer = { readonly id: number; readonly result?: unknown; readonly error?: string }
export type Said = { readonly said: string }
export type Kept = { readonly kept: TransferReadings }

const settings: NetworkSettings = JSON.parse(process.argv[2] ?? '')
const names = new Map<string, string>()
const say = (...parts: unknown[]): void => {
  process.send?.({ said: String(parts.at(-1)) } satisfies Said)
}
let keeps = true
const network = createNetwork(settings, {
  log: { info: say, warn: say, error: say },
  keepTransfer: async (kept) => {
    if (!keeps) throw new Error('the disk is full')
    process.send?.({ kept } satisfies Kept)
  },
})

async function carryOut(call: Call): Promise<unknown> {
  switch (call.do) {
    case 'prepareHost':
      return await network.prepareHost()
    case 'ensureMachine':
      return await network.ensureMachine(call.machine)
    case 'ensureBareTap':
      return await network.ensureBareTap(call.machineId, call.uid)
    case 'removeMachine':
      return await network.removeMachine(call.machineId)
    case 'reconcile': {
      const result = await network.reconcile(call.wanted)
      return { ...result, failed: result.failed.map(({ machineId, error }) => ({ machineId, error: explain(error) })) }
    }
    case 'readTransfer':
      return await network.readTransfer()
    case 'refuseToKeep':
      keeps = false
      return undefined
    case 'startMetadata':
      return await network.startMetadata(async (sourceIp) => names.get(sourceIp))
    case 'rename':
      names.set(call.address, call.name)
      return undefined
    case 'close':
      return await network.close()
  }
}

function explain(error: unknown): string {
  if (!(error instanceof Error)) return String(error)
  return error.cause === undefined ? error.message : `${error.message}: ${explain(error.cause)}`
}

process.on('message', ({ id, call }: { id: number; call: Call }) => {
  carryOut(call).then(
    (result) => process.send?.({ id, result } satisfies Answer),
    (error: unknown) => process.send?.({ id, error: explain(error) } satisfies Answer),
  )
})
process.on('disconnect', () => process.exit(0))
