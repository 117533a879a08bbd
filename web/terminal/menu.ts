/** The menu of a machine's sessions. */
import { element } from './page.ts'
import { SESSION_NAME } from './protocol.ts'

type Place = { machine: string; session: string }

/** @param leave gives the keyboard back to the terminal */
export function startMenu({ machine, session, leave }: Place & { leave(): void }): void {
  const menu = element<HTMLDetailsElement>('sessions')
  menu.addEventListener('toggle', () => {
    if (menu.open) void listSessions({ machine, session })
  })
  menu.addEventListener('keydown', (event) => {
    if (event.key !== 'Escape') return
    closeMenu()
    leave()
  })
  element('new-session').addEventListener('submit', (event) => {
    event.preventDefault()
    const name = element<HTMLInputElement>('session-name').value.trim()
    if (SESSION_NAME.test(name)) location.assign(`/terminal/${machine}/${name}`)
  })
}

export function closeMenu(): void {
  element<HTMLDetailsElement>('sessions').open = false
}

async function listSessions({ machine, session }: Place): Promise<void> {
  const list = element('session-list')
  try {
    const answer = await fetch(`/terminal/${machine}`, { headers: { accept: 'application/json' } })
    if (!answer.ok) throw new Error(String(answer.status))
    const { sessions } = (await answer.json()) as { sessions: { name: string; attached: number }[] }
    const attached = new Map(sessions.map((held) => [held.name, held.attached]))
    const names = new Set([session, ...attached.keys()])
    const items = [...names].sort().map((name) => {
      const others = (attached.get(name) ?? 0) - (name === session ? 1 : 0)
      return item({ href: `/terminal/${machine}/${name}`, name, isHere: name === session, isElsewhere: others > 0 })
    })
    list.replaceChildren(...items)
  } catch {
    list.replaceChildren(Object.assign(document.createElement('li'), { textContent: 'The list cannot be had now.' }))
  }
}

type Item = { href: string; name: string; isHere: boolean; isElsewhere: boolean }

function item({ href, name, isHere, isElsewhere }: Item): HTMLLIElement {
  const line = document.createElement('li')
  const link = Object.assign(document.createElement('a'), { href, textContent: name })
  if (isHere) link.setAttribute('aria-current', 'page')
  line.append(link)
  if (isElsewhere) {
    line.append(Object.assign(document.createElement('span'), { className: 'dim', textContent: ' open elsewhere' }))
  }
  return line
}
