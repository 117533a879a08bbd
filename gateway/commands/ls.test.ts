import { describe, expect, it } from 'vitest'
import { matches } from './ls.ts'

describe('a pattern of ls', () => {
  it.each([
    ['web-1', 'web-1', true],
    ['web-1', 'web', false],
    ['web', 'web-1', false],
    ['web-1', 'web-*', true],
    ['web-', 'web-*', true],
    ['web-1', '*', true],
    ['', '*', true],
    ['web-1', '***', true],
    ['web-1', '*-?', true],
    ['web-12', '*-?', false],
    ['abcabd', '*ab?', true],
    ['abcabd', '*abc', false],
    ['abab', 'a*b*b', true],
    ['a.b', 'a?b', true],
    ['axb', 'a.b', false],
    ['a', '', false],
    ['', '', true],
  ])('%j %j', (name, pattern, expected) => {
    expect(matches(name, pattern)).toBe(expected)
  })

  it('takes no time, whatever it has of stars', () => {
    const began = performance.now()
    expect(matches('a'.repeat(40), `${'*a'.repeat(9)}*b`)).toBe(false)
    expect(performance.now() - began).toBeLessThan(100)
  })
})
