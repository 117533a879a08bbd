/** The page of a web terminal: xterm.js between a person and a connection. */
import { FitAddon } from '@xterm/addon-fit'
import { Terminal } from '@xterm/xterm'
import { Connection, type State } from './connection.ts'
import { type Arrow, arrowKey, withControl } from './keys.ts'
import { closeMenu, startMenu } from './menu.ts'
import { element } from './page.ts'
import { FIRST_SESSION } from './protocol.ts'
import { tell } from './sentence.ts'
import { DARK, LIGHT } from './themes.ts'

const { machine = '', session = '' } = document.body.dataset
const here = `/terminal/${machine}`
const dark = matchMedia('(prefers-color-scheme: dark)')
const isTouch = matchMedia('(hover: none) and (pointer: coarse)')
const SCROLLBACK_LINES = 5000
const NOTE_MS = 8000
const READER_KEY = 'berth.terminal.screenReader'

const screen = element('screen')
const terminal = new Terminal({
  theme: dark.matches ? DARK : LIGHT,
  fontFamily: 'ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace',
  fontSize: isTouch.matches ? 13 : 14,
  lineHeight: 1.2,
  cursorBlink: false,
  scrollback: SCROLLBACK_LINES,
  minimumContrastRatio: 4.5,
  macOptionIsMeta: true,
  screenReaderMode: localStorage.getItem(READER_KEY) === 'on',
})
const fit = new FitAddon()
terminal.loadAddon(fit)
terminal.open(screen)
terminal.textarea?.setAttribute('aria-label', `Terminal on ${machine}. Shift and F6 leave it.`)
fit.fit()

const encoder = new TextEncoder()
let programTitle = ''
let isControlArmed = false

const connection = new Connection({
  url: `wss://${location.host}${here}/${session}/socket`,
  size: () => ({ columns: terminal.cols, rows: terminal.rows }),
  onState: show,
  onOutput: (bytes, shown) => terminal.write(bytes, shown),
})

// What is typed ---------------------------------------------------------------------------------------------------

terminal.onData((text) => {
  if (connection.state.is === 'ended' || connection.state.is === 'cut') {
    if (text === '\r') goOn()
    return
  }
  const typed = isControlArmed ? withControl(text) : text
  if (isControlArmed) armControl(false)
  connection.type(encoder.encode(typed))
})
// Mouse reports of old programs, which are no UTF-8.
terminal.onBinary((text) => connection.type(Uint8Array.from(text, (character) => character.charCodeAt(0))))

terminal.attachCustomKeyEventHandler((event) => {
  if (event.type !== 'keydown') return true
  if (event.key === 'F6' && event.shiftKey) {
    event.preventDefault()
    element('machines').focus()
    return false
  }
  const copies = (event.ctrlKey && event.shiftKey && event.code === 'KeyC') || (event.ctrlKey && event.key === 'Insert')
  if (copies && !event.altKey) {
    event.preventDefault()
    if (terminal.hasSelection()) void copy(terminal.getSelection())
    return false
  }
  return true
})

terminal.onTitleChange((title) => {
  programTitle = title
  nameWindow()
})

// The size --------------------------------------------------------------------------------------------------------

new ResizeObserver(() => requestAnimationFrame(refit)).observe(screen)
terminal.onResize(() => connection.resized())
dark.addEventListener('change', () => {
  terminal.options.theme = dark.matches ? DARK : LIGHT
})
// A phone's keyboard covers the page unless the page gives way.
visualViewport?.addEventListener('resize', () => {
  document.body.style.height = `${visualViewport?.height ?? innerHeight}px`
  scrollTo(0, 0)
})

function refit(): void {
  if (screen.clientHeight > 0) fit.fit()
}

// Keys that a phone lacks -----------------------------------------------------------------------------------------

for (const button of document.querySelectorAll<HTMLButtonElement>('#keys button')) {
  // The keyboard stays where it is.
  button.addEventListener('pointerdown', (event) => event.preventDefault())
  button.addEventListener('click', () => press(button.value))
}

function press(key: string): void {
  switch (key) {
    case 'control':
      armControl(!isControlArmed)
      break
    case 'paste':
      void paste()
      break
    case 'text':
      showText()
      return
    case 'escape':
      terminal.input('\x1b')
      break
    case 'tab':
      terminal.input('\t')
      break
    default: {
      const application = terminal.modes.applicationCursorKeysMode
      const bytes = arrowKey(key as Arrow, { application, control: isControlArmed })
      armControl(false)
      terminal.input(bytes)
    }
  }
  if (document.activeElement !== terminal.textarea && !isTouch.matches) terminal.focus()
}

function armControl(armed: boolean): void {
  isControlArmed = armed
  document.querySelector('#keys [value=control]')?.setAttribute('aria-pressed', String(armed))
}

// Copy and paste --------------------------------------------------------------------------------------------------

async function copy(text: string): Promise<void> {
  try {
    await navigator.clipboard.writeText(text)
  } catch {
    note('This browser does not let the page copy.')
  }
}

async function paste(): Promise<void> {
  try {
    terminal.paste(await navigator.clipboard.readText())
  } catch {
    note('This browser lets a page paste only from its own menu: hold a finger on the line you type in.')
  }
}

/** The text on the screen and above it, where a finger can select it. */
function showText(): void {
  const buffer = terminal.buffer.active
  const lines: string[] = []
  for (let at = 0; at < buffer.length; at++) {
    const line = buffer.getLine(at)
    const text = line?.translateToString(true) ?? ''
    if (line?.isWrapped && lines.length > 0) lines[lines.length - 1] += text
    else lines.push(text)
  }
  const area = element<HTMLTextAreaElement>('text')
  area.value = lines.join('\n').trimEnd()
  const dialog = element<HTMLDialogElement>('copying')
  dialog.showModal()
  area.scrollTop = area.scrollHeight
}

element('copy-all').addEventListener('click', () => {
  const area = element<HTMLTextAreaElement>('text')
  const part = area.value.slice(area.selectionStart, area.selectionEnd)
  void copy(part === '' ? area.value : part)
  element<HTMLDialogElement>('copying').close()
})

// The menu -----------------------------------------------------------------------------------------------------------

startMenu({ machine, session, leave: () => terminal.focus() })
screen.addEventListener('pointerdown', closeMenu)

const reader = element<HTMLInputElement>('reader')
reader.checked = terminal.options.screenReaderMode === true
reader.addEventListener('change', () => {
  terminal.options.screenReaderMode = reader.checked
  localStorage.setItem(READER_KEY, reader.checked ? 'on' : 'off')
})

// What a person is told -------------------------------------------------------------------------------------------

element('go-on').addEventListener('click', goOn)

function show(state: State): void {
  if (state.is === 'attached') {
    programTitle = ''
    // In line behind what still waits to be shown of the connection before; RIS (ECMA-48, 8.3.105).
    terminal.write('\x1bc')
    if (!isTouch.matches && (document.activeElement === null || document.activeElement === document.body)) {
      terminal.focus()
    }
  }
  const told = tell(state, { machine, session })
  document.body.dataset.state = state.is
  element('state').textContent = told.text
  element('notice').hidden = !told.isBlocking
  element('notice-text').textContent = told.text
  const button = element('go-on')
  button.hidden = told.button === undefined
  button.textContent = told.button ?? ''
  const command = element('command')
  if (command.parentElement) command.parentElement.hidden = told.command === undefined
  command.textContent = told.command ?? ''
  nameWindow()
}

function goOn(): void {
  const { state } = connection
  if (state.is === 'signedOut') location.assign(`/signin?${new URLSearchParams({ next: location.pathname })}`)
  else if (state.is === 'off') void start()
  else connection.open()
  if (!isTouch.matches) terminal.focus()
}

/** The connection sees by itself that the machine starts. */
async function start(): Promise<void> {
  const button = element<HTMLButtonElement>('go-on')
  button.disabled = true
  try {
    const answer = await fetch(`${here}/start`, { method: 'POST', headers: { accept: 'application/json' } })
    if (!answer.ok) note(((await answer.json()) as { error: string }).error)
  } catch {
    note('The connection was lost.')
  } finally {
    button.disabled = false
  }
}

/** A sentence beside the state, for a while. */
function note(text: string): void {
  const place = element('note')
  place.textContent = text
  setTimeout(() => {
    if (place.textContent === text) place.textContent = ''
  }, NOTE_MS)
}

function nameWindow(): void {
  const where = session === FIRST_SESSION ? machine : `${machine}/${session}`
  const what = connection.state.is === 'attached' ? programTitle : tell(connection.state, { machine, session }).text
  document.title = what === '' ? where : `${where}: ${what}`
}

connection.open()
