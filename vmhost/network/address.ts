/** IPv4 arithmetic and the names derived from it. Everything here is pure; addresses travel as dotted strings. */

/** A network as `first/prefix`, host bits zero. `first` and `last` are unsigned 32-bit numbers, both inclusive. */
export type Cidr = { readonly first: number; readonly last: number; readonly prefix: number }

/** IFNAMSIZ is 16 with the terminating zero: `vm` and up to 13 digits fit. @see linux/if.h */
const TAP_NAME = /^vm([1-9][0-9]{0,12})$/

/** Name of a machine's tap: `vm` and the machine's id. @throws RangeError when the id is no positive integer of at most 13 digits */
export function tapName(machineId: number): string {
  const name = `vm${machineId}`
  if (!Number.isSafeInteger(machineId) || !TAP_NAME.test(name)) throw new RangeError(`${machineId} is no machine id`)
  return name
}

/** The machine whose tap this is, or undefined when the name is not one that `tapName` makes (`vmbr0`, `vmnet8`). */
export function machineOfTap(name: string): number | undefined {
  const digits = TAP_NAME.exec(name)?.[1]
  return digits === undefined ? undefined : Number(digits)
}

/** @returns the address as an unsigned 32-bit number. @throws RangeError unless it is four decimal numbers 0-255 without leading zeros */
export function parseAddress(text: string): number {
  const parts = text.split('.')
  const numbers = parts.map((part) => (/^(0|[1-9][0-9]{0,2})$/.test(part) ? Number(part) : 256))
  if (parts.length !== 4 || numbers.some((value) => value > 255)) {
    throw new RangeError(`${JSON.stringify(text)} is no IPv4 address`)
  }
  return numbers.reduce((sum, value) => sum * 256 + value, 0)
}

export function formatAddress(value: number): string {
  return [24, 16, 8, 0].map((shift) => (value >>> shift) & 255).join('.')
}

/** @returns the network of `a.b.c.d/n` (a bare address is a /32). @throws RangeError on bad text or when bits right of the prefix are set */
export function parseCidr(text: string): Cidr {
  const [address = '', prefixText = '32', ...rest] = text.split('/')
  const prefix = /^(0|[1-9][0-9]?)$/.test(prefixText) ? Number(prefixText) : 33
  if (prefix > 32 || rest.length > 0) throw new RangeError(`${JSON.stringify(text)} is no IPv4 network`)
  const first = parseAddress(address)
  const size = 2 ** (32 - prefix)
  if (first % size !== 0) {
    const clean = formatCidr({ first: first - (first % size), last: 0, prefix })
    throw new RangeError(`${text} has bits set right of its prefix; the network is ${clean}`)
  }
  return { first, last: first + size - 1, prefix }
}

export function formatCidr(network: Cidr): string {
  return `${formatAddress(network.first)}/${network.prefix}`
}

export function contains(network: Cidr, address: number): boolean {
  return network.first <= address && address <= network.last
}

export function overlaps(one: Cidr, other: Cidr): boolean {
  return one.first <= other.last && other.first <= one.last
}

/** The gateway's address as machines see it: the first one of the network (10.42.0.1 of 10.42.0.0/16). */
export function gatewayAddress(network: Cidr): string {
  return formatAddress(network.first + 1)
}

/** May a machine have this address? Not the network's first two (itself, the gateway) nor its last (broadcast). */
export function isMachineAddress(network: Cidr, address: number): boolean {
  return contains(network, address) && address > network.first + 1 && address < network.last
}

/**
 * MAC of the network card that has this address: `02:be:` (locally administered) and the four address bytes.
 * @throws RangeError when `address` is no IPv4 address
 */
export function macFor(address: string): string {
  const value = parseAddress(address)
  const bytes = [24, 16, 8, 0].map((shift) => ((value >>> shift) & 255).toString(16).padStart(2, '0'))
  return ['02', 'be', ...bytes].join(':')
}

/**
 * A private /16 that overlaps none of `taken`, to be suggested when BERTH_NETWORK cannot be used: the neighbours of
 * the default first, then the rest of 10/8, 172.16/12, 192.168/16. Undefined when all of them are taken.
 */
export function suggestNetwork(taken: readonly Cidr[]): string | undefined {
  const tens = Array.from({ length: 256 }, (_, index) => `10.${(42 + index) % 256}.0.0/16`)
  const others = Array.from({ length: 16 }, (_, index) => `172.${16 + index}.0.0/16`)
  return [...tens, ...others, '192.168.0.0/16'].find((candidate) => {
    const network = parseCidr(candidate)
    return !taken.some((one) => overlaps(one, network))
  })
}
