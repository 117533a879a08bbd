import { useSignal } from '@preact/signals'
import { leave } from '../../api/exec.ts'
import { useExec } from '../../api/use-exec.ts'
import { CommandButton } from '../../parts/CommandButton.tsx'
import { Copy } from '../../parts/Copy.tsx'
import { Failed } from '../../parts/Failed.tsx'
import { SignOutEverywhere } from '../../parts/SignOut.tsx'
import { Skeleton } from '../../parts/Skeleton.tsx'
import { Ago } from '../../parts/time.tsx'
import { Qr } from '../machine/qr.tsx'
import { Until } from '../until.tsx'

type BrowserDocument = {
  id: number
  address: string
  signed_in_at: string
  last_used_at: string
  expires_at: string
  current: boolean
}

type SignInLink = { url: string; qr: string[] }

export function Browsers() {
  const { value, error, reload } = useExec<{ browsers: BrowserDocument[] }>(['browser', 'ls'], ['audit'])
  const link = useSignal<SignInLink | undefined>(undefined)
  return (
    <section aria-labelledby="browsers">
      <h2 id="browsers">Browsers</h2>
      {value ? (
        <ul class="rows">
          {value.browsers.map((one) => (
            <li key={one.id}>
              <span class="name">
                <span class="mono">{one.address}</span>
                {one.current && ' (this one)'}
              </span>
              <span class="dim">
                signed in <Ago at={one.signed_in_at} />, used <Ago at={one.last_used_at} />, ends{' '}
                <Until at={one.expires_at} />
              </span>
              <CommandButton
                words={['browser', 'rm', String(one.id)]}
                label={one.current ? 'Sign out this browser' : `Sign out the browser at ${one.address}`}
                {...(one.current ? { onDone: leave } : {})}
              >
                Sign out
              </CommandButton>
            </li>
          ))}
        </ul>
      ) : error ? (
        <Failed error={error} wayOn={{ label: 'Try again', act: reload }} />
      ) : (
        <Skeleton lines={2} />
      )}
      {link.value && (
        <div class="once" role="status">
          <p>Good once, for ten minutes. Whoever opens it is you.</p>
          <Copy text={link.value.url} label="Copy the link" />
          <Qr rows={link.value.qr} label="The link as a QR code, for a phone" />
        </div>
      )}
      <div class="actions">
        <CommandButton
          words={['browser', '--qr']}
          onDone={(document) => {
            link.value = document as SignInLink
          }}
        >
          Sign another browser in
        </CommandButton>
        <SignOutEverywhere kind="danger" />
      </div>
    </section>
  )
}
