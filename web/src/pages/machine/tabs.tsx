import { useSignal } from '@preact/signals'
import type { ComponentChildren } from 'preact'
import { useEffect, useId } from 'preact/hooks'

export type Tab = { id: string; title: string; show: () => ComponentChildren }

/**
 * One of several parts of a page; which one is in the address, behind #, so that it can be linked to and come back to.
 * @see https://www.w3.org/WAI/ARIA/apg/patterns/tabs/
 */
export function Tabs({ tabs, label }: { tabs: readonly Tab[]; label: string }) {
  const base = useId()
  const wanted = useSignal(location.hash.slice(1))
  useEffect(() => {
    const look = () => {
      wanted.value = location.hash.slice(1)
    }
    addEventListener('hashchange', look)
    addEventListener('popstate', look)
    return () => {
      removeEventListener('hashchange', look)
      removeEventListener('popstate', look)
    }
  }, [wanted])
  const shown = tabs.find(({ id }) => id === wanted.value) ?? tabs[0]
  const chosen = `${base}-${shown?.id}`
  // On a phone not all of them have room.
  useEffect(() => document.getElementById(chosen)?.scrollIntoView({ block: 'nearest', inline: 'nearest' }), [chosen])
  if (!shown) return null
  const open = (id: string) => {
    wanted.value = id
    history.replaceState(history.state, '', id === tabs[0]?.id ? location.pathname : `#${id}`)
  }
  const onKeyDown = (event: KeyboardEvent) => {
    const at = tabs.indexOf(shown)
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1 + tabs.length, Home: 0, End: tabs.length - 1 }[event.key]
    const next = to === undefined ? undefined : tabs[to % tabs.length]
    if (!next) return
    event.preventDefault()
    open(next.id)
    document.getElementById(`${base}-${next.id}`)?.focus()
  }
  return (
    <>
      <div class="tabs" role="tablist" aria-label={label} onKeyDown={onKeyDown}>
        {tabs.map(({ id, title }) => (
          <button
            key={id}
            type="button"
            role="tab"
            id={`${base}-${id}`}
            aria-selected={id === shown.id}
            aria-controls={`${base}-panel`}
            tabIndex={id === shown.id ? 0 : -1}
            onClick={() => open(id)}
          >
            {title}
          </button>
        ))}
      </div>
      <div
        key={shown.id}
        class="tab-panel"
        role="tabpanel"
        id={`${base}-panel`}
        aria-labelledby={`${base}-${shown.id}`}
      >
        {shown.show()}
      </div>
    </>
  )
}
