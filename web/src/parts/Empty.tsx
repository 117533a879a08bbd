import type { ComponentChildren } from 'preact'
import { CommandLine } from './CommandLine.tsx'

/** There is nothing yet: what it would be, and how to make the first, here and over SSH. */
export function Empty({
  children,
  words,
  action,
}: {
  children: ComponentChildren
  words?: readonly string[]
  action?: ComponentChildren
}) {
  return (
    <div class="empty">
      <p>{children}</p>
      {action}
      {words && (
        <>
          <p class="dim">In a terminal:</p>
          <CommandLine words={words} />
        </>
      )}
    </div>
  )
}
