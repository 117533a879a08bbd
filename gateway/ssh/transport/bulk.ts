import type { ChannelEnd, ChannelSink } from './channel-end.ts'
import type { Protocol } from './protocol.ts'

/**
 * The short cut for bulk data. Data of a channel that is only passed on does not need to be seen here packet by packet:
 * one native call (`relay` in ssh2's patched binding.cc, where its contract stands) decrypts all packets that one read
 * brought, and encrypts them for the other connection, into one piece of memory that one write takes.
 *
 * The ordinary way (a message at a time through `Link`) remains for everything else, and decides everything: the call
 * stops in front of, or just behind, whatever is not plain data of that one channel within the limits given to it.
 * Both ciphers must be AEAD ones (aes-gcm, chacha20-poly1305) and neither side may be agreeing on new keys.
 */

/** A channel that moves data in pieces of this size is a bulk one. */
export const bulkPieceBytes = 8 * 1024

/** Fields of the native call's job, in the order of RelayField in binding.cc. */
export const field = {
  recipient: 0,
  newRecipient: 1,
  budget: 2,
  mostInPacket: 3,
  inSeqno: 4,
  outSeqno: 5,
  stop: 6,
  inputPos: 7,
  outputLength: 8,
  dataBytes: 9,
  packets: 10,
  payloadPos: 11,
  payloadLength: 12,
} as const
export const fieldCount = 13

/** Why the native call ended, in the order of RelayStop in binding.cc. */
export const stopped = { incomplete: 0, foreign: 1, limit: 2, invalid: 3, broken: 4 } as const

/** Where the data of one channel goes. */
export type Route = {
  from: ChannelEnd
  to: ChannelEnd
  /** What handled the channel's data when the route was made; another one may have other plans for it. */
  sink: ChannelSink
  /** Told of data that went this way, without the sink's `onData`. */
  onPassed: (lengthBytes: number) => void
}

export type Passed = {
  /** One of `stopped`. */
  stop: number
  /** Where the first packet begins that was not read. */
  nextStart: number
  /** Encrypted packets for the other side; the caller returns its memory with `releaseOutput`. */
  output: Buffer
  outputBytes: number
  dataBytes: number
  packets: number
  /** Behind `stopped.foreign`: the packet before `nextStart`, decrypted. */
  payload: Buffer | undefined
}

// For one read (reading.ts), whose packets may become a little longer
const outputBytes = 336 * 1024
const spareOutputsMost = 4
const spareOutputs: Buffer[] = []
const job = new Uint32Array(fieldCount)

/** Whether data of the channel may still go this way. */
export function isOpen({ from, to, sink }: Route): boolean {
  return from.sink === sink && !from.closeReceived && to.sendable && !to.eofSent && !to.link.isHeld
}

/**
 * Passes on the packets at `chunk[start..end)`, the first of which begins at `start`.
 * @returns undefined when nothing was done and the packets have to go the ordinary way
 */
export function passPackets(
  { from, to }: Route,
  source: Protocol,
  target: Protocol,
  chunk: Buffer,
  start: number,
  end: number,
): Passed | undefined {
  job[field.recipient] = from.localId
  job[field.newRecipient] = to.remoteId
  job[field.budget] = Math.min(from.receiveWindowBytes, to.sendWindowBytes)
  job[field.mostInPacket] = to.sendPacketBytes
  const output = spareOutputs.pop() ?? Buffer.allocUnsafeSlow(outputBytes)
  if (!source.relayTo(target, chunk, start, end, output, job)) {
    releaseOutput(output)
    return undefined
  }
  const stop = result('stop')
  const payloadStart = result('payloadPos')
  return {
    stop,
    nextStart: result('inputPos'),
    output,
    outputBytes: result('outputLength'),
    dataBytes: result('dataBytes'),
    packets: result('packets'),
    payload:
      stop === stopped.foreign ? chunk.subarray(payloadStart, payloadStart + result('payloadLength')) : undefined,
  }
}

function result(name: keyof typeof field): number {
  return job[field[name]] as number
}

export function releaseOutput(output: Buffer): void {
  if (spareOutputs.length < spareOutputsMost) spareOutputs.push(output)
}
