import type { State } from './connection.ts'
import type { WayOn } from './protocol.ts'

/** What a person is told of a connection: a sentence for the bar, and what can be done about it. */
export type Told = {
  /** shown in the bar and read out */
  text: string
  /** also put over the terminal, because nothing can be typed */
  isBlocking: boolean
  /** text of the button that goes on; none: there is nothing to be done here */
  button?: string
  /** a command of the lobby that does the same */
  command?: string
}

const BUTTONS: Record<WayOn['verb'], string> = { start: 'Start', restart: 'Restart', resume: 'Resume' }

export function tell(state: State, { machine, session }: { machine: string; session: string }): Told {
  switch (state.is) {
    case 'connecting':
      return { text: 'Connecting.', isBlocking: false }
    case 'waiting':
      return { text: state.text, isBlocking: true }
    case 'off':
      return {
        text: state.text,
        isBlocking: true,
        button: `${BUTTONS[state.wayOn.verb]} ${machine}`,
        command: state.wayOn.command,
      }
    case 'attached':
      return { text: 'Connected.', isBlocking: false }
    case 'cut': {
      const again = state.retryInMs < 1500 ? 'again now' : `again in ${Math.round(state.retryInMs / 1000)} s`
      return { text: `${state.text} Trying ${again}; what runs goes on.`, isBlocking: true, button: 'Try now' }
    }
    case 'ended':
      return { text: state.text, isBlocking: true, button: `Begin ${session} anew` }
    case 'refused':
      return { text: state.text, isBlocking: true, button: 'Try again' }
    case 'signedOut':
      return { text: 'You are signed out. What runs goes on.', isBlocking: true, button: 'Sign in' }
  }
}
