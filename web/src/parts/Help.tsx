import { signal } from '@preact/signals'
import { Dialog } from './Dialog.tsx'
import { Check } from './inputs.tsx'

export const helpIsOpen = signal(false)

const SHORTCUTS_KEY = 'berth-shortcuts'
/** Whether single letters and signs do something: who speaks to the computer turns them off (WCAG 2.2, 2.1.4). */
export const hasShortcuts = signal(localStorage.getItem(SHORTCUTS_KEY) !== 'off')
hasShortcuts.subscribe((isOn) => localStorage.setItem(SHORTCUTS_KEY, isOn ? 'on' : 'off'))

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
      <Check value={hasShortcuts}>Letters and signs are shortcuts, in this browser</Check>
      <p class="dim">
        {hasShortcuts.value ? 'Turned off, they' : 'They'} do nothing; arrows, Space, Enter and Esc go on doing what
        they do, and this is under Keyboard, behind your name.
      </p>
    </Dialog>
  )
}
