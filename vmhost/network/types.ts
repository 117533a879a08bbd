import type { Logger } from 'pino'
import type { TransferReadings } from './counters.ts'

/** A port of the gateway that machines may reach like anybody else. Without `address`: on every address of the host. */
export type PublicPort = {
  readonly protocol: 'tcp' | 'udp'
  readonly port: number
  readonly address?: string
  /** It answers for the ports 3000-9999 of machines' names too: connections to those of the host's that nobody has. */
  readonly forMachinePorts?: true
}

export type NetworkSettings = {
  /** BERTH_NETWORK, e.g. `10.42.0.0/16`. */
  readonly network: string
  /** BERTH_ALLOW: private networks that machines may reach all the same, e.g. `['192.168.7.0/24']`. */
  readonly allow: readonly string[]
  /** The ports that the gateway on this server has, until `openPorts` says otherwise. */
  readonly publicPorts: readonly PublicPort[]
  /** Connections one machine may have at a time; 8192 unless given. */
  readonly flowsPerMachine?: number
}

/** What the network must know of a machine that has, or is about to have, a hypervisor. */
export type MachineNetwork = {
  readonly machineId: number
  /** From `network`, unique in the installation. */
  readonly address: string
  /** The user that the hypervisor runs as: the only one that may open the tap. */
  readonly uid: number
  /** MAC of the guest's card when it is not `macFor(address)`: a restored template keeps the template's. */
  readonly mac?: string
  /** It wakes: connections that the host knows of this address are its own, and go on. */
  readonly goesOn?: true
}

/** Where a hypervisor plugs in: an existing persistent tap (IFF_VNET_HDR, one queue) and the MAC for the guest's card. */
export type Attachment = { readonly tap: string; readonly mac: string }

export type ReconcileResult = {
  /** Taps that were made, or had something put right. */
  readonly ensured: readonly string[]
  /** Taps of ours that nobody wanted, now gone. */
  readonly removed: readonly string[]
  /** Machines that could not be connected, with the reason. The others are not held up by them. */
  readonly failed: readonly { readonly machineId: number; readonly error: Error }[]
}

/** Finds the name of the machine that has this address now; undefined when there is none. Asked for every request. */
export type NameLookup = (sourceIp: string) => Promise<string | undefined>

/**
 * One host's network. All changes go through one queue: callers may call at the same time, and calls that
 * wait together are carried out together.
 */
export type Network = {
  /**
   * Makes the host ready: nft tables, the gateway's address, forwarding. Idempotent, to be called once before the rest.
   * @throws NetworkError with a sentence for the operator (overlap with a suggestion, missing tool, no permission)
   */
  prepareHost(): Promise<void>
  /** Lets machines reach these ports of the gateway, and no others from now on. @throws NetworkError */
  openPorts(ports: readonly PublicPort[]): Promise<void>
  /** Tap, address, route, neighbour and isolation of one machine; leaves alone what is right. @throws NetworkError */
  ensureMachine(machine: MachineNetwork): Promise<Attachment>
  /**
   * A tap for a guest that is nobody yet: it has a card, and what it sends goes nowhere. `removeMachine` takes it away,
   * and so does the next vmhost. @throws NetworkError
   */
  ensureBareTap(machineId: number, uid: number): Promise<Pick<Attachment, 'tap'>>
  /** Takes the machine's tap and everything that hangs on it away; nothing happens when there is none. @throws NetworkError */
  removeMachine(machineId: number): Promise<void>
  /**
   * Makes the kernel's state agree with exactly these machines and repeats what `prepareHost` does (default routes
   * move, firewalls get reloaded). Removes strays that are ours only: taps with our name and our interface group.
   */
  reconcile(wanted: readonly MachineNetwork[]): Promise<ReconcileResult>
  /** What the taps of all machines have carried since their counters were made, of those too that are about to go. */
  readTransfer(): Promise<TransferReadings>
  /** Serves http://169.254.169.254/ to machines until `close`. @throws NetworkError when the port cannot be had */
  startMetadata(lookup: NameLookup): Promise<void>
  /** Stops the metadata service and waits for changes under way. Taps and rules stay: machines outlive the vmhost. */
  close(): Promise<void>
}

export type NetworkContext = {
  readonly log: Pick<Logger, 'info' | 'warn' | 'error'>
  /**
   * Keeps what counters read last, for good: they are removed when this has succeeded, and read again later when it has
   * not. No packet is counted by them any more.
   */
  readonly keepTransfer?: (last: TransferReadings) => Promise<void>
}

/** A failure of the host's network; the message is a sentence for the operator. */
export class NetworkError extends Error {
  override readonly name: string = 'NetworkError'
}

/** The network that the settings ask for is in use on this host: only another setting helps. */
export class NetworkTakenError extends NetworkError {
  override readonly name = 'NetworkTakenError'
}
