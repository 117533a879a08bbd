import { signal } from '@preact/signals'
import { Dialog } from './Dialog.tsx'

export const helpIsOpen = signal(false)

/** What the keyboard does, by page; `?` shows it. */
const KEYS: [keys: string[], what: string][] = [
  [['/'], 'filter the list'],
  [['↑', '↓'], 'move in the list'],
  [['Enter'], 'open the row in place'],
  [['x'], 'choose the row; with Shift and an arrow several'],
  [['o'], 'go to the machine’s page'],
  [['n'], 'new machine'],
  [['Esc'], 'close, clear, leave the filter'],
  [['?'], 'this'],
]

export function Help() {
  if (!helpIsOpen.value) return null
  return (
    <Dialog title="Keyboard" onClose={() => (helpIsOpen.value = false)}>
      <dl class="keys">
        {KEYS.map(([keys, what]) => (
          <div key={what}>
            <dt>
              {keys.map((key) => (
                <kbd key={key}>{key}</kbd>
              ))}
            </dt>
            <dd>{what}</dd>
          </div>
        ))}
      </dl>
    </Dialog>
  )
}
