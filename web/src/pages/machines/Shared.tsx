import { useSignal } from '@preact/signals'
import { useEffect } from 'preact/hooks'
import { newsOf } from '../../api/live.ts'
import { Dot } from '../../parts/Dot.tsx'

type Listed = {
  machines: { name: string; state: string; own: boolean; url: string; owner: string | null }[]
  offered: { share: number; name: string; email: string; owner: string | null }[]
}

/** What others share with this person: their pages only, so there is nothing to be done to it here. */
export function Shared() {
  const listed = useSignal<Listed | undefined>(undefined)
  const news = newsOf('shares').value
  // Asked again when somebody shared or took back.
  useEffect(() => {
    const left = new AbortController()
    fetch('/list?of=others', { headers: { Accept: 'application/json' }, signal: left.signal })
      .then(async (response) => {
        if (response.ok) listed.value = (await response.json()) as Listed
      })
      // It is not what the page is for; the next look may have it.
      .catch(() => {})
    return () => left.abort()
  }, [news])
  const shared = listed.value?.machines.filter(({ own }) => !own) ?? []
  const offered = listed.value?.offered ?? []
  if (shared.length + offered.length === 0) return null
  return (
    <section>
      <h2>Shared with you</h2>
      <ul class="shared">
        {offered.map(({ share, name, email, owner }) => (
          <li key={share}>
            <p>
              {owner ?? 'Its owner'} lets you see what <code>{name}</code> shows; the machine is told that you are{' '}
              <b>{email}</b>.
            </p>
            <form method="post" action={`/share/${share}`}>
              <input type="hidden" name="next" value="/" />
              <button type="submit">Accept {name}</button>
            </form>
          </li>
        ))}
        {shared.map(({ name, state, url, owner }) => (
          <li key={name}>
            <a class="mono" href={url}>
              {name}
            </a>
            <Dot status={state} />
            {owner !== null && <span class="dim">of {owner}</span>}
          </li>
        ))}
      </ul>
    </section>
  )
}
