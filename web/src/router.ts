/** Where the person is, on the History API: links to pages of ours are followed here, all others by the browser. */
import { signal } from '@preact/signals'
import { findRoute } from './routes.ts'

/** the path, without query and fragment */
export const path = signal(location.pathname)

/** The part of the address behind `?`; change it with `setQuery`. */
export const query = signal(new URLSearchParams(location.search))

/** How far down each entry of the history was, for the way back. */
const SCROLL = 'berth-scroll'

/** Goes to a page. @param to a path with or without a query */
export function go(to: string): void {
  keepScroll()
  history.pushState(null, '', to)
  arrive()
  scrollTo(0, 0)
}

/** Changes the query in place: what is filtered or which range is shown belongs into the address. */
export function setQuery(change: Record<string, string | undefined>): void {
  const next = new URLSearchParams(query.value)
  for (const [name, value] of Object.entries(change)) {
    if (value === undefined || value === '') next.delete(name)
    else next.set(name, value)
  }
  const text = next.toString()
  history.replaceState(history.state, '', text === '' ? path.value : `${path.value}?${text}`)
  query.value = next
}

export function startRouter(): void {
  history.scrollRestoration = 'manual'
  addEventListener('popstate', (event: PopStateEvent) => {
    arrive()
    const top = (event.state as { [SCROLL]?: number } | null)?.[SCROLL] ?? 0
    // The page has to be drawn before it can be scrolled.
    requestAnimationFrame(() => requestAnimationFrame(() => scrollTo(0, top)))
  })
  addEventListener('pagehide', keepScroll)
  document.addEventListener('click', (event) => {
    if (event.defaultPrevented || event.button !== 0) return
    if (event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return
    const link = (event.target as Element | null)?.closest?.('a')
    if (link == null || link.target !== '' || link.hasAttribute('download') || link.origin !== location.origin) return
    if (findRoute(link.pathname) === undefined) return
    if (link.pathname === location.pathname && link.search === location.search && link.hash !== '') return
    event.preventDefault()
    go(`${link.pathname}${link.search}`)
  })
}

function keepScroll(): void {
  history.replaceState({ ...(history.state as object | null), [SCROLL]: scrollY }, '')
}

function arrive(): void {
  path.value = location.pathname
  query.value = new URLSearchParams(location.search)
}
