import { useSignal } from '@preact/signals'

const SAID_MS = 2_000

/** Something one could type or paste elsewhere, in the monospaced face, and a button that copies it. */
export function Copy({ text, label = 'Copy', href }: { text: string; label?: string; href?: string | undefined }) {
  const said = useSignal('')
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text)
      said.value = 'Copied'
    } catch {
      said.value = 'Select it and copy by hand'
    }
    setTimeout(() => {
      said.value = ''
    }, SAID_MS)
  }
  return (
    <span class="copy">
      {href === undefined ? (
        <code>{text}</code>
      ) : (
        <a href={href}>
          <code>{text}</code>
        </a>
      )}
      <button type="button" class="small" title={label} aria-label={`${label}: ${text}`} onClick={copy}>
        {said.value || 'Copy'}
      </button>
      <span class="hidden" role="status">
        {said.value}
      </span>
    </span>
  )
}
