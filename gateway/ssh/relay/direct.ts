import type { Upstream } from '../pool/upstream.ts'
import { type ChannelEnd, deafSink } from '../transport/channel-end.ts'
import { firstWindowBytes } from '../transport/flow.ts'
import type { IncomingOpen, Link } from '../transport/link.ts'
import { openFailure } from '../transport/wire.ts'
import { join } from './through.ts'

/**
 * Passes a CHANNEL_OPEN on as it is: the answer of the one side is the answer to the other, so type, addresses, windows,
 * packet sizes and refusals are end to end. Used from client to machine (direct-tcpip, direct-streamlocal and whatever
 * else a client knows) and from machine to client (agent, X11, forwarded-tcpip, forwarded-streamlocal).
 *
 * @param asking whoever sent the CHANNEL_OPEN; already accepted, not confirmed
 * @param answering where it goes
 */
export function passOpen(
  asking: ChannelEnd,
  answering: Link,
  open: Pick<IncomingOpen, 'type' | 'rest'>,
  events: { onActivity(): void; answeringIsMachine: boolean },
): void {
  const other = answering.open(open.type, firstWindowBytes(asking), asking.sendPacketBytes, open.rest, {
    ...deafSink,
    onOpen() {
      asking.confirm(firstWindowBytes(other), other.sendPacketBytes)
      const [near, far] = events.answeringIsMachine ? [asking, other] : [other, asking]
      join(near, far, { onActivity: events.onActivity, onFarLost: () => near.close() })
      events.onActivity()
    },
    onRefused: (reason, description) => asking.refuse(reason, description),
    onLost: () => asking.refuse(openFailure.connectFailed, 'The connection was lost.'),
  })
  asking.sink = { ...deafSink, onLost: () => other.close() }
}

/** A channel that a client opens and that is no session. */
export async function openDirect(
  asking: ChannelEnd,
  open: Pick<IncomingOpen, 'type' | 'rest'>,
  upstream: Promise<Upstream>,
  events: { onActivity(): void; onOpened(upstream: Upstream): void },
): Promise<void> {
  try {
    const reached = await upstream
    if (asking.link.alive) passOpen(asking, reached.link, open, { ...events, answeringIsMachine: true })
    events.onOpened(reached)
  } catch (error) {
    asking.refuse(openFailure.connectFailed, error instanceof Error ? error.message : String(error))
  }
}
