import { parseReference } from '../images/reference.ts'
import { contains, formatAddress, gatewayAddress, parseAddress, parseCidr } from '../network/address.ts'
import type { MachineRow } from './rows.ts'

/** A machine cannot be started as its row says; the message is a sentence for its owner. */
export class MachineError extends Error {
  override readonly name = 'MachineError'
}

export type GuestNetwork = { readonly network: string; readonly resolvers: readonly string[]; readonly ntp: string }

export type CheckedMachine = MachineRow & { readonly address: string }
type Addressed = Pick<CheckedMachine, 'name' | 'address'>

const MiB = 2 ** 20
const memoryLeastBytes = 128 * MiB

/**
 * Looks at every value that ends up in an argument, a path or a command line. The row was written by the gateway,
 * which is not root; this process is.
 * @throws MachineError, ImageError
 */
export function checkMachine(row: MachineRow, limits: { network: string; memoryBytes: number }): CheckedMachine {
  const { address } = row
  if (!/^[a-z](?:[a-z0-9]|-(?=[a-z0-9])){0,39}$/.test(row.name))
    throw new MachineError('Its name is not a machine name')
  if (!isOwnImage(row.image)) parseReference(row.image)
  if (!Number.isInteger(row.cpus) || row.cpus < 1 || row.cpus > 256)
    throw new MachineError('It must have 1 to 256 CPUs')
  if (!Number.isSafeInteger(row.memoryBytes) || row.memoryBytes % MiB !== 0 || row.memoryBytes < memoryLeastBytes) {
    throw new MachineError(`Its memory must be a multiple of 1 MiB and at least ${memoryLeastBytes / MiB} MiB`)
  }
  if (row.memoryBytes > limits.memoryBytes) {
    const has = (limits.memoryBytes / 2 ** 30).toFixed(1)
    throw new MachineError(`It wants more memory than its server has (${has} GiB)`)
  }
  if (!Number.isSafeInteger(row.diskBytes) || row.diskBytes % 512 !== 0) {
    throw new MachineError('Its disk must be a multiple of 512 bytes')
  }
  if (address === null) throw new MachineError('It has no address')
  if (!contains(parseCidr(limits.network), parseAddress(address))) {
    throw new MachineError(`Its address ${address} does not belong to ${limits.network}`)
  }
  return { ...row, address }
}

/** Names of the images that set-up makes; every other is one of a registry. */
export function isOwnImage(name: string): boolean {
  return name === 'base' || name === 'minimal'
}

/** The kernel's command line, which exe-init reads in its turn (init/stage_one.c). */
export function commandLine(machine: Addressed, guest: GuestNetwork, emulated: boolean): string {
  const line = `console=hvc0 root=/dev/vda init=/exe/bin/exe-init rw ip=${ipSettings(machine, guest)}`
  return emulated ? `${line} mitigations=off` : line
}

/**
 * Where a machine is that was another when its kernel started, and goes on from that one's memory.
 * @param startedWith that kernel's command line
 * @returns what it must be told; undefined when it knows
 */
export function movedTo(
  machine: Addressed,
  guest: GuestNetwork,
  startedWith: string,
): { address: string; commandLine: string } | undefined {
  if (addressIn(startedWith) === machine.address) return undefined
  const emulated = / mitigations=off$/.test(startedWith)
  // As a kernel shows its own: a line that ends.
  return { address: ipSettings(machine, guest), commandLine: `${commandLine(machine, guest, emulated)}\n` }
}

/** The address that a kernel was started with. A card keeps the MAC of that address, whatever it is told later. */
export function addressIn(startedWith: string): string | undefined {
  return / ip=(\d+\.\d+\.\d+\.\d+):/.exec(startedWith)?.[1]
}

/** @see https://docs.kernel.org/admin-guide/nfs/nfsroot.html, `ip=` */
function ipSettings(machine: Addressed, guest: GuestNetwork): string {
  const network = parseCidr(guest.network)
  const gateway = gatewayAddress(network)
  const mask = formatAddress(2 ** 32 - 2 ** (32 - network.prefix))
  const [dns0 = '', dns1 = ''] = guest.resolvers
  return `${machine.address}:${gateway}:${gateway}:${mask}:${machine.name}:eth0:none:${dns0}:${dns1}:${guest.ntp}`
}
