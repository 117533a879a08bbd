import { Dot } from '../../parts/Dot.tsx'
import { Ago } from '../../parts/time.tsx'
import { sayBytes, sentence } from '../../parts/words.ts'
import type { MachineDocument, WhyDocument } from './documents.ts'

const OVER = { ssh: 'over SSH', https: 'by a web request', websocket: 'by a WebSocket' } as const

/** What the machine does, in a word, and why, in a sentence. */
export function State({ machine, why }: { machine: MachineDocument; why: WhyDocument | undefined }) {
  const { status, status_text, reason, setup, comment } = machine
  return (
    <div class="machine-state">
      <p class="machine-status">
        <Dot status={status_text} /> <Why machine={machine} why={why} />
      </p>
      {reason !== undefined && (
        <p class={status === 'failed' ? 'notice' : 'dim'}>
          {sentence(reason)}
          {status === 'failed' && ' Restart tries again.'}
        </p>
      )}
      {setup !== undefined && <p class={setup.state === 'failed' ? 'notice' : 'dim'}>{setupInWords(setup)}</p>}
      {comment !== '' && <p class="dim">{comment}</p>}
    </div>
  )
}

function Why({ machine, why }: { machine: MachineDocument; why: WhyDocument | undefined }) {
  const { status, stage } = machine
  // The row is pushed; the rest of the answer may be of a moment ago.
  const because = machine.awake_because
  const used = why?.last_activity
  const lastUse = used ? (
    <span class="dim">
      {' '}
      Last used <Ago at={used.at} />, {OVER[used.what]}.
    </span>
  ) : null
  if (status === 'asleep' || status === 'paused') {
    return (
      <span>
        {why?.asleep_because !== undefined && why.asleep_because !== null && `${sentence(why.asleep_because)} `}
        {why?.asleep_since && (
          <>
            Fell asleep <Ago at={why.asleep_since} />.{' '}
          </>
        )}
        {why?.saved_bytes != null && `Its memory takes ${sayBytes(why.saved_bytes)} on the disk. `}
        {status === 'paused' ? 'Nothing but Resume wakes it.' : 'Whatever comes for it wakes it.'}
        {lastUse}
      </span>
    )
  }
  if (stage) return <span>{sentence(stage)}</span>
  if (status !== 'running') return null
  if (because !== null) {
    return (
      <span>
        Awake: {because === 'never' ? 'it never sleeps for being idle' : because}.{lastUse}
      </span>
    )
  }
  if (!why) return null
  return (
    <span>
      {why.idle_since ? (
        <>
          Idle since <Ago at={why.idle_since} />.
        </>
      ) : (
        'Its server has not said yet what keeps it awake.'
      )}
      {lastUse}
    </span>
  )
}

function setupInWords({ state, exit_status }: NonNullable<MachineDocument['setup']>): string {
  if (state === 'waiting') return 'Its setup script waits for the machine.'
  if (state === 'running') return 'Its setup script runs.'
  if (state === 'done') return 'Its setup script ended with status 0.'
  return exit_status === null
    ? 'Its setup script could not be run to its end.'
    : `Its setup script ended with status ${exit_status}.`
}
