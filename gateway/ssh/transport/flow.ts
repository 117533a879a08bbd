import type { ChannelEnd } from './channel-end.ts'
import type { Link } from './link.ts'

/**
 * Flow control of a relayed channel: the sender is granted what the receiver has granted us, never more, so whatever
 * arrives can be passed on at once and no channel has a queue. What waits, waits in the receiver's socket, and while
 * that holds more than a little nobody sending to it is granted anything.
 *
 * How much at a time: a channel may have `quietWindowBytes` under way. One that moves more is busy, and the busy ones
 * towards one link share `busyWindowBytes`, of which one alone gets OpenSSH's own 2 MiB.
 */
const quietWindowBytes = 256 * 1024
const mostWindowBytes = 2 * 1024 * 1024
const leastWindowBytes = 64 * 1024
const busyWindowBytes = 4 * 1024 * 1024
const enoughBacklogBytes = 1024 * 1024

/** What may be granted at first, when `receiver` lets us send `sendWindowBytes`. */
export function firstWindowBytes(receiver: { sendWindowBytes: number }): number {
  return Math.min(receiver.sendWindowBytes, quietWindowBytes)
}

/** To be called after `lengthBytes` went from `sender` to `receiver`. */
export function moved(sender: ChannelEnd, receiver: ChannelEnd, lengthBytes: number): void {
  receiver.recentBytes += lengthBytes
  if (!receiver.busy && receiver.recentBytes > quietWindowBytes) {
    receiver.busy = true
    receiver.link.busyChannels++
  }
  grantRoom(sender, receiver)
}

/** Grants `sender` what `receiver` can take by now, if that is worth a message. */
export function grantRoom(sender: ChannelEnd, receiver: ChannelEnd): void {
  const window = Math.min(windowBytes(receiver), receiver.sendWindowBytes)
  const room = window - sender.receiveWindowBytes
  // A quarter at a time, or at least as much as is left: small windows move too, in more steps
  if (room <= 0 || (room < window / 4 && room < sender.receiveWindowBytes)) return
  if (receiver.link.backlogBytes > enoughBacklogBytes) {
    receiver.link.callWhenDrained(receiver)
    return
  }
  sender.grant(room)
}

function windowBytes(receiver: ChannelEnd): number {
  if (!receiver.busy) return quietWindowBytes
  const share = busyWindowBytes / receiver.link.busyChannels
  return Math.floor(Math.max(leastWindowBytes, Math.min(share, mostWindowBytes)))
}

/** Forgets who was busy, now and then; else a channel that once moved much would keep its share for ever. */
export function sweepBusy(link: Link): void {
  if (link.busyChannels === 0) return
  for (const end of link.channels()) {
    if (end.busy && end.recentBytes <= quietWindowBytes) {
      end.busy = false
      link.busyChannels--
    }
    end.recentBytes = 0
  }
}
