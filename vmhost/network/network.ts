import type { Network, NetworkContext, NetworkSettings } from './types.ts'

/** @throws RangeError when a network or address of the settings cannot be parsed */
export function createNetwork(settings: NetworkSettings, context: NetworkContext): Network {
  throw new Error(`not built yet: ${settings.network} ${typeof context.log}`)
}
