/**
 * What goes over a web terminal's WebSocket, `/terminal/NAME/SESSION/socket?columns=80&rows=24`. Binary messages are
 * the terminal's bytes, what is typed and what is shown; text messages are one of these as JSON.
 *
 * Each side sends only what the other has room for: the browser says how much it has shown, the gateway how much it
 * has passed on. TCP alone would not do: a browser takes all that comes, and a paste into a program that prints would
 * hold up the news that what it printed was read.
 */
export type FromBrowser =
  /** columns and rows */
  | { resize: [number, number] }
  /** bytes shown since the last such message */
  | { seen: number }
  /** answered with the same number: is anybody there? */
  | { ping: number }

export type ToBrowser =
  /** the machine is on its way; `text` is a sentence */
  | { state: 'waiting'; text: string }
  /** it stays off until somebody does something; the connection goes on when that was done */
  | { state: 'off'; text: string; wayOn: WayOn }
  /** bytes may be sent; what is shown begins anew */
  | { state: 'attached' }
  /** the program in the session ended; nothing follows */
  | { state: 'ended'; text: string }
  /** there is no coming in, and another try would not help; nothing follows */
  | { state: 'refused'; text: string }
  /** the machine cannot be reached at the moment; nothing follows */
  | { state: 'unreachable'; text: string }
  /** typed bytes passed on since the last such message */
  | { taken: number }
  | { pong: number }

/** A command of the lobby that helps. `verb` alone is what the page's button asks for. */
export type WayOn = { verb: 'start' | 'restart' | 'resume'; command: string }

/** Most bytes that were sent to the browser and not said to be shown. */
export const OUTPUT_WINDOW_BYTES = 512 * 1024
/** Most bytes that were typed and not said to be passed on. */
export const INPUT_WINDOW_BYTES = 128 * 1024

/** Why a connection is closed (RFC 6455, 7.4.2), where a program branches on it. */
export const CLOSED = {
  /** RFC 6455, 7.4.1: all was said */
  done: 1000,
  /** the gateway stops; another takes over */
  restart: 1012,
  /** the sender does not keep to this protocol */
  violation: 1008,
  /** RFC 6455, 7.4.1: the gateway could not go on; another try may help */
  failed: 1011,
  /** nobody is signed in here */
  signedOut: 4401,
  /** what let this one in was taken away; asking again says more */
  takenAway: 4403,
} as const

/** Sessions are called as exe-hold lets them be called (init/hold_wire.c). */
export const SESSION_NAME = /^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$/
export const FIRST_SESSION = 'main'
