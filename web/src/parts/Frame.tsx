import type { ComponentChildren } from 'preact'
import { useEffect, useRef } from 'preact/hooks'
import { live } from '../api/live.ts'
import { unread } from '../api/notices.ts'
import { installation } from '../installation.ts'
import { path } from '../router.ts'
import { ROUTES } from '../routes.ts'
import { helpIsOpen } from './Help.tsx'
import { Menu } from './Menu.tsx'
import { SignOutEverywhere } from './SignOut.tsx'
import { Ago } from './time.tsx'

export type FrameProps = {
  /** the page's heading and its name in the browser's tab */
  title: string
  /** beside the heading: the page's main action, a filter */
  actions?: ComponentChildren
  /** before the heading: what it belongs to */
  above?: ComponentChildren
  /** as wide as the window, for lists and plots; otherwise as wide as one reads */
  wide?: boolean
  children?: ComponentChildren
}

let shownPath = path.peek()
let hasMoved = false

/** What every page stands in: the way to the others, the heading, and since when what is shown is stale. */
export function Frame({ title, actions, above, wide = false, children }: FrameProps) {
  const heading = useRef<HTMLHeadingElement>(null)
  useEffect(() => {
    document.title = `${title} · ${installation.domain}`
  }, [title])
  useEffect(() => {
    // Whoever came by a link is told where they are; a page that was just opened begins at its top.
    hasMoved ||= path.peek() !== shownPath
    shownPath = path.peek()
    if (hasMoved) heading.current?.focus({ preventScroll: true })
  }, [])
  return (
    <>
      <a class="skip" href="#main">
        To the content
      </a>
      <header class="bar">
        <a class="home" href="/">
          Berth <span class="mono">{installation.domain}</span>
        </a>
        <nav aria-label="Pages">
          <ul>
            {ROUTES.filter(({ menu, operator }) => menu && (!operator || installation.isOperator)).map((route) => (
              <li key={route.path}>
                <a href={route.path} aria-current={isHere(route.path) ? 'page' : undefined}>
                  {route.menu}
                </a>
              </li>
            ))}
          </ul>
        </nav>
        {unread.value > 0 && (
          <a class="told" href="/billing">
            {unread.value === 1 ? '1 notice' : `${unread.value} notices`}
          </a>
        )}
        <Menu label={installation.who} class="who">
          <button type="button" class="plain" onClick={() => (helpIsOpen.value = true)}>
            Keyboard
          </button>
          <form method="post" action="/signout">
            <button type="submit" class="plain">
              Sign out
            </button>
          </form>
          <SignOutEverywhere />
        </Menu>
      </header>
      <Stale />
      <main id="main" class={wide ? 'wide' : undefined}>
        {above}
        <div class="title">
          <h1 ref={heading} tabIndex={-1}>
            {title}
          </h1>
          {actions}
        </div>
        {children}
      </main>
    </>
  )
}

function isHere(to: string): boolean {
  return to === '/' ? path.value === '/' || path.value.startsWith('/machines/') : path.value.startsWith(to)
}

/** Says that nothing comes any more, and keeps what there is. */
function Stale() {
  const { state, sinceMs } = live.value
  return (
    <div class="stale" role="status" hidden={state !== 'stale'}>
      {state === 'stale' && (
        <p>
          Not live: Berth was last heard {sinceMs === undefined ? 'a while ago' : <Ago at={sinceMs} />}. What is shown
          was so then; it is tried again.
        </p>
      )}
    </div>
  )
}
