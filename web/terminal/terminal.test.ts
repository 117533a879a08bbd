import { expect, test } from 'vitest'
import { arrowKey, withControl } from './keys.ts'
import { tell } from './sentence.ts'

test('arrows are sent as the program in the terminal asked for them', () => {
  expect(arrowKey('up', { application: false, control: false })).toBe('\x1b[A')
  expect(arrowKey('left', { application: true, control: false })).toBe('\x1bOD')
  expect(arrowKey('right', { application: true, control: true })).toBe('\x1b[1;5C')
})

test('Ctrl makes control characters of letters and leaves the rest', () => {
  expect(['c', 'D', '[', ' ', '?', '1', 'ä', 'ls'].map(withControl)).toEqual([
    '\x03',
    '\x04',
    '\x1b',
    '\0',
    '\x7f',
    '1',
    'ä',
    'ls',
  ])
})

test('whatever stops a person from typing is said in a sentence, with the way on', () => {
  const at = { machine: 'demo', session: 'main' }
  const wayOn = { verb: 'start', command: 'ssh host start demo' } as const
  expect(tell({ is: 'attached' }, at)).toEqual({ text: 'Connected.', isBlocking: false })
  expect(tell({ is: 'cut', text: 'The connection was lost.', retryInMs: 3100 }, at)).toMatchObject({
    text: 'The connection was lost. Trying again in 3 s; what runs goes on.',
    button: 'Try now',
  })
  expect(tell({ is: 'off', text: 'demo is stopped.', wayOn }, at)).toMatchObject({
    isBlocking: true,
    button: 'Start demo',
    command: 'ssh host start demo',
  })
  expect(tell({ is: 'signedOut' }, at).button).toBe('Sign in')
})
