import { useEffect } from 'preact/hooks'
import { unread } from '../../api/notices.ts'
import { useExec } from '../../api/use-exec.ts'
import { CommandButton } from '../../parts/CommandButton.tsx'
import { Ago } from '../../parts/time.tsx'
import type { Notice } from './documents.ts'

/** What the account was told, what nobody has read yet open. */
export function Notices() {
  const { value, reload } = useExec<{ unread: number; notices: Notice[] }>(['billing', 'notices'], ['notices'])
  useEffect(() => {
    if (value !== undefined) unread.value = value.unread
  }, [value])
  const newest = value?.notices[0]
  if (value === undefined || newest === undefined) return null
  return (
    <section aria-labelledby="notices">
      <h2 id="notices">Notices</h2>
      {value.notices.map(({ id, subject, body, at, read_at: readAt }) => (
        <details key={id} class="notice" open={readAt === null}>
          <summary>
            {readAt === null ? <b>{subject}</b> : subject}{' '}
            <span class="dim">
              <Ago at={at} />
            </span>
          </summary>
          <p class="told">{body.trimEnd()}</p>
        </details>
      ))}
      {value.unread > 0 && (
        <CommandButton words={['billing', 'notices', '--read', String(newest.id)]} onDone={reload}>
          {value.unread === 1 ? 'It is read' : 'They are read'}
        </CommandButton>
      )}
    </section>
  )
}
