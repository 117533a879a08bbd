import { useSignal } from '@preact/signals'
import type { ComponentChildren } from 'preact'
import { Code } from './Code.tsx'

const SAID_MS = 2_000

/** Something one could type or paste elsewhere, in the monospaced face, and a button that copies it. */
export function Copy({ text, label = 'Copy', href }: { text: string; label?: string; href?: string | undefined }) {
  return (
    <span class="copy">
      {href === undefined ? (
        <Code text={text} />
      ) : (
        <a href={href}>
          <Code text={text} />
        </a>
      )}
      <CopyButton text={text} title={label} label={`${label}: ${text}`}>
        Copy
      </CopyButton>
    </span>
  )
}

/** The button alone, for what stands elsewhere. @param label what a screen reader calls it */
export function CopyButton({
  text,
  title,
  label,
  children,
}: {
  text: string
  title?: string
  label?: string
  children: ComponentChildren
}) {
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
    <>
      <button type="button" class="small" title={title} aria-label={label} disabled={text === ''} onClick={copy}>
        {said.value || children}
      </button>
      <span class="hidden" role="status">
        {said.value}
      </span>
    </>
  )
}
