import { CLOSED, type FromBrowser, INPUT_WINDOW_BYTES, type ToBrowser, type WayOn } from './protocol.ts'

/**
 * A terminal's connection as a person is told of it.
 *
 *   connecting -> waiting | off -> attached -> ended | refused | signedOut: until somebody asks for another
 *        ^                            |
 *        +----------- cut <-----------+   tried again by itself, sooner when the network or the person comes back
 */
export type State =
  | { is: 'connecting' }
  | { is: 'waiting'; text: string }
  | { is: 'off'; text: string; wayOn: WayOn }
  | { is: 'attached' }
  | { is: 'cut'; text: string; retryInMs: number }
  | { is: 'ended'; text: string }
  | { is: 'refused'; text: string }
  | { is: 'signedOut' }

export type ConnectionOptions = {
  /** `wss://…/socket`, without the size */
  url: string
  size(): { columns: number; rows: number }
  onState(state: State): void
  /** @param shown to be called when the bytes are on the screen */
  onOutput(bytes: Uint8Array, shown: () => void): void
}

const RETRY_FIRST_MS = 500
const RETRY_MOST_MS = 15_000
/** Asked whether it lives when the person or the network comes back, and now and then while somebody looks. */
const PING_EVERY_MS = 20_000
const PONG_LIMIT_MS = 6_000
const CONNECT_LIMIT_MS = 15_000
const SEEN_EVERY_BYTES = 64 * 1024
const MESSAGE_MOST_BYTES = 16 * 1024

export class Connection {
  readonly #options: ConnectionOptions
  #socket: WebSocket | undefined
  #state: State = { is: 'connecting' }
  #failures = 0
  #retry: ReturnType<typeof setTimeout> | undefined
  #deadline: ReturnType<typeof setTimeout> | undefined
  /** shown and not told yet */
  #seenBytes = 0
  /** typed and not sent for want of room */
  #waiting: Uint8Array[] = []
  #roomBytes = 0
  #sentSize = ''

  constructor(options: ConnectionOptions) {
    this.#options = options
    setInterval(() => {
      if (!document.hidden) this.check()
    }, PING_EVERY_MS)
    addEventListener('online', () => this.check())
    document.addEventListener('visibilitychange', () => {
      if (!document.hidden) this.check()
    })
    // A page that the browser keeps for the way back would keep its connection with it.
    addEventListener('pagehide', () => this.#socket?.close())
    addEventListener('pageshow', (event) => {
      if (event.persisted) this.open()
    })
  }

  get state(): State {
    return this.#state
  }

  /** Connects, now. */
  open(): void {
    clearTimeout(this.#retry)
    this.#drop()
    const { columns, rows } = this.#options.size()
    this.#sentSize = `${columns} ${rows}`
    const socket = new WebSocket(`${this.#options.url}?columns=${columns}&rows=${rows}`)
    socket.binaryType = 'arraybuffer'
    this.#socket = socket
    // A reconnection keeps its sentence until there is a better one.
    if (this.#state.is !== 'cut') this.#enter({ is: 'connecting' })
    this.#expectWord(CONNECT_LIMIT_MS)
    socket.onmessage = ({ data }) => {
      clearTimeout(this.#deadline)
      if (typeof data === 'string') this.#hear(JSON.parse(data) as ToBrowser)
      else this.#show(new Uint8Array(data as ArrayBuffer))
    }
    socket.onclose = ({ code, reason }) => {
      if (this.#socket !== socket) return
      this.#drop()
      this.#closed(code, reason)
    }
  }

  /** Sends what was typed, as far as there is room; the rest follows. */
  type(bytes: Uint8Array): void {
    // Whoever types while the page opens means this terminal; later it may be anything.
    if (this.#state.is !== 'attached' && this.#state.is !== 'connecting') return
    for (let at = 0; at < bytes.length; at += MESSAGE_MOST_BYTES) {
      this.#waiting.push(bytes.subarray(at, at + MESSAGE_MOST_BYTES))
    }
    this.#flush()
  }

  resized(): void {
    const { columns, rows } = this.#options.size()
    const size = `${columns} ${rows}`
    if (size === this.#sentSize || this.#socket?.readyState !== WebSocket.OPEN) return
    this.#sentSize = size
    this.#say({ resize: [columns, rows] })
  }

  /** Finds out whether the connection still lives; when it was cut, tries again at once. */
  check(): void {
    if (this.#state.is === 'cut') this.open()
    else if (this.#socket?.readyState === WebSocket.OPEN) {
      this.#say({ ping: 1 })
      this.#expectWord(PONG_LIMIT_MS)
    }
  }

  #hear(message: ToBrowser): void {
    if ('taken' in message) {
      this.#roomBytes += message.taken
      this.#flush()
      return
    }
    if ('pong' in message) return
    switch (message.state) {
      case 'attached':
        this.#failures = 0
        this.#roomBytes = INPUT_WINDOW_BYTES
        this.#seenBytes = 0
        // A change that came before anybody listened for it was lost.
        this.#sentSize = ''
        this.resized()
        this.#flush()
        this.#enter({ is: 'attached' })
        return
      case 'waiting':
        this.#enter({ is: 'waiting', text: message.text })
        return
      case 'off':
        this.#enter({ is: 'off', text: message.text, wayOn: message.wayOn })
        return
      case 'ended':
      case 'refused':
        this.#drop()
        this.#enter({ is: message.state, text: message.text })
        return
      case 'unreachable':
        this.#drop()
        this.#cut(message.text)
    }
  }

  #closed(code: number, reason: string): void {
    if (code === CLOSED.signedOut) this.#enter({ is: 'signedOut' })
    else if (code === CLOSED.takenAway) this.open()
    else if (code === CLOSED.restart) this.#cut('Berth is restarting.')
    else if (code === CLOSED.violation) this.#cut(reason === '' ? 'The connection was refused.' : reason)
    else this.#cut(navigator.onLine ? 'The connection was lost.' : 'This device is offline.')
  }

  #cut(text: string): void {
    const most = Math.min(RETRY_FIRST_MS * 2 ** this.#failures++, RETRY_MOST_MS)
    // Spread out, or all terminals would come back at the same moment.
    const retryInMs = Math.round(most * (0.5 + Math.random() / 2))
    this.#retry = setTimeout(() => this.open(), retryInMs)
    this.#enter({ is: 'cut', text, retryInMs })
  }

  #show(bytes: Uint8Array): void {
    const socket = this.#socket
    this.#options.onOutput(bytes, () => {
      if (socket !== this.#socket) return
      this.#seenBytes += bytes.length
      if (this.#seenBytes < SEEN_EVERY_BYTES) return
      this.#say({ seen: this.#seenBytes })
      this.#seenBytes = 0
    })
  }

  #flush(): void {
    while (this.#waiting[0] !== undefined && this.#waiting[0].length <= this.#roomBytes) {
      const bytes = this.#waiting.shift() as Uint8Array<ArrayBuffer>
      this.#roomBytes -= bytes.length
      this.#socket?.send(bytes)
    }
  }

  #say(message: FromBrowser): void {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message))
  }

  /** A connection over which nothing comes within this time is given up. */
  #expectWord(limitMs: number): void {
    clearTimeout(this.#deadline)
    this.#deadline = setTimeout(() => {
      this.#drop()
      this.#closed(0, '')
    }, limitMs)
  }

  #drop(): void {
    clearTimeout(this.#deadline)
    const socket = this.#socket
    this.#socket = undefined
    if (!socket) return
    socket.onmessage = null
    socket.onclose = null
    socket.close()
  }

  #enter(state: State): void {
    if (state.is !== 'attached') {
      this.#waiting = []
      this.#roomBytes = 0
    }
    this.#state = state
    this.#options.onState(state)
  }
}
