/**
 * What each machine's tap has carried, counted by the kernel for the ledger.
 *
 * Out, what is paid for, is counted where the tap hands a frame to the host, before anything looks at it: table `netdev
 * berth` has a chain on each tap (hook ingress), so ARP, IPv6 and what is refused later count like all that the guest's
 * own card says it sent, and the lengths agree to the byte (a super-packet of segmentation offload is one packet with
 * one header on both sides). In is counted in `inet berth`, where the rules let it pass.
 *
 * A series is one life of a machine's counters. Its name is theirs (`m<machine>_<series>_<what>`), so it outlives the
 * vmhost with them. Counters are made once, under a name that was never used before, and never set back: whatever reads
 * less than before, or is missing, was touched by somebody else. They outlive their tap until what they read last is
 * kept for good.
 *
 * @see https://wiki.nftables.org/wiki-nftables/index.php/Nftables_families, netdev
 */

import { z } from 'zod'
import { tapName } from './address.ts'
import { runCommand } from './command.ts'

/** Metadata is free, and named here so that both sides of it are left out. */
const METADATA_ADDRESS = '169.254.169.254'

/**
 * Reverse ARP, with which QEMU tells the network where a guest is that goes on from its memory: five frames that its
 * card has not sent. (QEMU 7.2 that is told not to, `announce-rounds=0`, crashes when that guest resets its card.) They
 * get no further than the tap.
 * @see RFC 903
 */
const RARP = '0x8035'

/** Before anything else of nftables on this hook. */
const FIRST = -500

export type Counted = { readonly bytes: number; readonly packets: number }

/** Bytes without the Ethernet header. A part is missing where somebody removed its counter. */
export type TransferReading = {
  readonly machineId: number
  /** a UUID */
  readonly series: string
  readonly directOut?: Counted
  readonly directIn?: Counted
  readonly gatewayOut?: Counted
  readonly gatewayIn?: Counted
}

export type TransferReadings = {
  /** microseconds since the host's boot when the reading began: grows from each to the next, whatever process reads */
  readonly sequence: number
  readonly readings: readonly TransferReading[]
}

/** A machine whose tap is counted. */
export type CountedMachine = {
  readonly machineId: number
  readonly series: string
  /** its counters are not there yet */
  readonly isFresh: boolean
}

const PARTS = [
  { part: 'directOut', name: 'direct_out', family: 'netdev' },
  { part: 'gatewayOut', name: 'gateway_out', family: 'netdev' },
  { part: 'directIn', name: 'direct_in', family: 'inet' },
  { part: 'gatewayIn', name: 'gateway_in', family: 'inet' },
] as const

/** Lines that make the counters of fresh series. Tables first. */
export function renderCounters(machines: readonly CountedMachine[]): string[] {
  return [
    'add table netdev berth',
    'add map inet berth direct_in { type ifname : counter; size 65536; }',
    'add map inet berth gateway_in { type ifname : counter; size 65536; }',
    ...machines
      .filter(({ isFresh }) => isFresh)
      .flatMap((machine) =>
        PARTS.map(({ family, name }) => `add counter ${family} berth ${counterName(machine, name)}`),
      ),
  ]
}

/**
 * Elements of a map from tap to counter. The transaction that they are in fails as a whole when a counter is missing, so
 * no counter is ever made anew under a name that it had.
 */
export function counterElements(name: 'direct_in' | 'gateway_in', machines: readonly CountedMachine[]): string[] {
  return machines.map((machine) => `"${tapName(machine.machineId)}" : "${counterName(machine, name)}"`)
}

/**
 * The chains on these machines' taps, which must exist, as one transaction.
 *
 * A chain that packets may be passing through is kept, and its rules are stated again: a packet meets the old ones or the
 * new ones. Were the chain replaced, a packet could be counted twice: the kernel gives the new chain its rules and takes
 * the old one off the hook later, one chain after the other, and until then the old one counts as before
 * (nf_tables_commit, which prepares no other rules for a chain that goes).
 * @param anew machines whose taps carry nothing, or whose chain is another's: it is replaced, because chains follow the
 *   device that they were made for, or its name, or go with it, as the kernel's version has it
 */
export function renderTapCounting(
  machines: readonly CountedMachine[],
  anew: { has(machineId: number): boolean },
): string {
  return machines
    .flatMap((machine) => {
      const tap = tapName(machine.machineId)
      return [
        ...(anew.has(machine.machineId) ? renderNoChain(tap) : []),
        `add chain netdev berth ${tap} { type filter hook ingress device "${tap}" priority ${FIRST}; policy accept; }`,
        `flush chain netdev berth ${tap}`,
        `add rule netdev berth ${tap} meta protocol ${RARP} accept comment "the hypervisor's own"`,
        `add rule netdev berth ${tap} ip daddr ${METADATA_ADDRESS} accept comment "metadata is free"`,
        `add rule netdev berth ${tap} fib daddr type local counter name ${counterName(machine, 'gateway_out')} accept comment "to the host"`,
        `add rule netdev berth ${tap} counter name ${counterName(machine, 'direct_out')} comment "to everybody else"`,
      ]
    })
    .concat('')
    .join('\n')
}

/** A chain may be there or not, whatever the kernel did with it when its tap went. */
function renderNoChain(tap: string): string[] {
  return [`add chain netdev berth ${tap}`, `delete chain netdev berth ${tap}`]
}

/**
 * Removes counters, those that a reading has, and the chains of machines that have no others.
 * @param connected machines that have a series still
 * @throws NetworkError
 */
export async function removeCounters(
  gone: readonly TransferReading[],
  connected: { has(machineId: number): boolean },
): Promise<void> {
  const ended = new Set(gone.map(({ machineId }) => machineId).filter((machineId) => !connected.has(machineId)))
  const lines = [
    'add table netdev berth',
    ...[...ended].flatMap((machineId) => renderNoChain(tapName(machineId))),
    ...gone.flatMap((reading) =>
      PARTS.flatMap(({ part, family, name }) =>
        reading[part] === undefined ? [] : [`delete counter ${family} berth ${counterName(reading, name)}`],
      ),
    ),
    '',
  ]
  await runCommand('nft', ['-f', '-'], lines.join('\n'))
}

const counterListSchema = z.object({
  nftables: z.array(
    z.object({
      counter: z
        .object({ family: z.string(), table: z.string(), name: z.string(), packets: z.number(), bytes: z.number() })
        .optional(),
    }),
  ),
})

let turn: Promise<unknown> = Promise.resolve()

/**
 * Reads all counters of this network namespace. Readings are taken one after the other, so that a later sequence never
 * has a lower count.
 * @throws NetworkError
 */
export function readCounters(): Promise<TransferReadings> {
  const read = turn.then(async () => {
    const sequence = Number(process.hrtime.bigint() / 1000n)
    return { sequence, readings: parseCounters(await runCommand('nft', ['-j', 'list', 'counters'])) }
  })
  turn = read.catch(() => {})
  return read
}

function parseCounters(text: string): TransferReading[] {
  const found = new Map<string, { machineId: number; series: string } & { [part in Part]?: Counted }>()
  for (const { counter } of counterListSchema.parse(JSON.parse(text)).nftables) {
    const match = counter?.table === 'berth' ? COUNTER_NAME.exec(counter.name) : null
    const [, machine = '', digits = '', name] = match ?? []
    const one = PARTS.find((candidate) => candidate.name === name && candidate.family === counter?.family)
    if (counter === undefined || one === undefined) continue
    const series = digits.replace(/^(.{8})(.{4})(.{4})(.{4})/, '$1-$2-$3-$4-')
    const reading = found.get(digits) ?? { machineId: Number(machine), series }
    reading[one.part] = { bytes: counter.bytes, packets: counter.packets }
    found.set(digits, reading)
  }
  return [...found.values()]
}

type Part = (typeof PARTS)[number]['part']

/** Whether no counter of the series is missing. */
export function isWhole(reading: TransferReading): boolean {
  return PARTS.every(({ part }) => reading[part] !== undefined)
}

const COUNTER_NAME = /^m([1-9]\d{0,9})_([0-9a-f]{32})_((?:direct|gateway)_(?:out|in))$/

function counterName({ machineId, series }: Pick<CountedMachine, 'machineId' | 'series'>, name: string): string {
  return `m${machineId}_${series.replaceAll('-', '')}_${name}`
}
