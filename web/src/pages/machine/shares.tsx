import { useSignal } from '@preact/signals'
import { useExec } from '../../api/use-exec.ts'
import { CommandButton } from '../../parts/CommandButton.tsx'
import { Copy } from '../../parts/Copy.tsx'
import { Failed } from '../../parts/Failed.tsx'
import { SelectField, TextField } from '../../parts/inputs.tsx'
import { Skeleton } from '../../parts/Skeleton.tsx'
import { Ago } from '../../parts/time.tsx'
import { Until } from '../until.tsx'
import type { LinkDocument, NewLinkDocument, ShareDocument } from './documents.ts'
import { Qr } from './qr.tsx'

/** Who may see what the machine shows: everybody, readers of mailboxes, whoever has a link. */
export function Shares({ name }: { name: string }) {
  const shares = useExec<ShareDocument>(['share', 'show', name], ['audit', 'machines'])
  const { value, error, reload } = shares
  if (!value)
    return error ? <Failed error={error} wayOn={{ label: 'Try again', act: reload }} /> : <Skeleton lines={6} />
  return (
    <>
      <Open name={name} shares={value} />
      <People name={name} shares={value} />
      <Links name={name} links={value.links} />
    </>
  )
}

type Part = { name: string; shares: ShareDocument }

function Open({ name, shares }: Part) {
  const isPublic = shares.status === 'public'
  const port = useSignal('')
  return (
    <section aria-labelledby="open">
      <h2 id="open">Its page</h2>
      <p>
        <a class="mono" href={shares.url} target="_blank" rel="noreferrer">
          {shares.url}
        </a>{' '}
        shows port {shares.port}.{' '}
        {isPublic ? 'Everybody may see it.' : 'It is private: you see it, and whom you let in.'}
      </p>
      <div class="actions">
        {isPublic ? (
          <CommandButton words={['share', 'set-private', name]} undo={['share', 'set-public', name]}>
            Make it private
          </CommandButton>
        ) : (
          <CommandButton words={['share', 'set-public', name]} undo={['share', 'set-private', name]}>
            Open it to everybody
          </CommandButton>
        )}
      </div>
      <div class="line-form">
        <TextField
          label="Show another port"
          isExact
          class="short mono"
          inputMode="numeric"
          placeholder={String(shares.port)}
          value={port}
        />
        <CommandButton
          words={['port', name, port.value || 'PORT']}
          undo={['port', name, String(shares.port)]}
          disabled={!/^\d+$/.test(port.value)}
          onDone={() => {
            port.value = ''
          }}
        >
          Show it
        </CommandButton>
      </div>
    </section>
  )
}

function People({ name, shares }: Part) {
  const email = useSignal('')
  const message = useSignal('')
  return (
    <section aria-labelledby="people">
      <h2 id="people">People</h2>
      {shares.users.length === 0 ? (
        <p class="dim">Shared with nobody by mail.</p>
      ) : (
        <ul class="rows">
          {shares.users.map((user) => (
            <li key={user.email}>
              <span class="name">{user.email}</span>
              <span class="dim">
                {user.status === 'pending' ? 'invited' : 'sees it, invited'} <Ago at={user.invited_at} />
              </span>
              <CommandButton
                words={['share', 'remove', name, user.email]}
                undo={['share', 'add', name, user.email]}
                label={`Take back what ${user.email} sees`}
              >
                Take back
              </CommandButton>
            </li>
          ))}
        </ul>
      )}
      <div class="line-form">
        <TextField label="E-mail address" isExact type="email" value={email} />
        <TextField label="A few words for the mail (optional)" maxLength={1000} value={message} />
        <CommandButton
          words={[
            'share',
            'add',
            name,
            email.value || 'EMAIL',
            ...(message.value === '' ? [] : [`--message=${message.value}`]),
          ]}
          undo={['share', 'remove', name, email.value]}
          disabled={!email.value.includes('@')}
          onDone={() => {
            email.value = ''
            message.value = ''
          }}
        >
          Invite
        </CommandButton>
      </div>
    </section>
  )
}

const GOOD_FOR = [
  ['1h', '1 hour'],
  ['1d', '1 day'],
  ['7d', '7 days'],
  ['30d', '30 days'],
  ['', 'until it is taken back'],
] as const

function Links({ name, links }: { name: string; links: readonly LinkDocument[] }) {
  const expires = useSignal('7d')
  const uses = useSignal('')
  const made = useSignal<NewLinkDocument | undefined>(undefined)
  const words = [
    'share',
    'add-link',
    name,
    ...(expires.value === '' ? [] : [`--expires=${expires.value}`]),
    ...(uses.value === '' ? [] : [`--uses=${uses.value}`]),
    '--qr',
  ]
  return (
    <section aria-labelledby="links">
      <h2 id="links">Links</h2>
      {made.value && (
        <div class="once" role="status">
          <p>Whoever opens this sees what {name} shows. It is shown this once.</p>
          <p class="row">
            <Copy text={made.value.url} label="Copy the link" />
          </p>
          {made.value.qr && <Qr rows={made.value.qr} label="The link as a QR code" />}
        </div>
      )}
      {links.length === 0 ? (
        <p class="dim">No link is good.</p>
      ) : (
        <ul class="rows">
          {links.map((link) => (
            <li key={link.token}>
              <span class="name">Link {link.token}</span>
              <span class="dim">
                made <Ago at={link.created_at} />, let in {link.use_count}
                {link.uses_left !== null && `, ${link.uses_left} left`}
                {', '}
                {link.expires_at === null ? (
                  'good until it is taken back'
                ) : (
                  <>
                    ends <Until at={link.expires_at} />
                  </>
                )}
              </span>
              <CommandButton
                words={['share', 'remove-link', name, link.token]}
                label={`Take back link ${link.token}`}
                confirm={name}
                warning="The link opens nothing any more, and whoever came by it is cut off."
              >
                Take back
              </CommandButton>
            </li>
          ))}
        </ul>
      )}
      <div class="line-form">
        <SelectField label="Good for" value={expires} choices={GOOD_FOR} />
        <TextField label="Browsers it lets in (optional)" isExact class="short" inputMode="numeric" value={uses} />
        <CommandButton
          words={words}
          onDone={(document) => {
            made.value = document as NewLinkDocument
          }}
        >
          Make a link
        </CommandButton>
      </div>
    </section>
  )
}
