import { expect, test } from 'vitest'
import { environmentOver, environmentProblem, environmentsProblem } from './environment.ts'

test.each([
  'two words',
  '',
  '"quoted" \'single\'',
  'a=b=c',
  '$HOME `id` %h \\n',
  'tab\there',
  'déjà vu 🛳',
  '# no comment',
])('the value %j is good', (value) => {
  expect(environmentProblem('NAME', value)).toBeUndefined()
})

test.each([
  ['', 'x', 'no variable name'],
  ['1A', 'x', 'no variable name'],
  ['A-B', 'x', 'no variable name'],
  ['A\nB', 'x', '"A?B" is no variable name'],
  ['HOME', 'x', 'belongs to the session'],
  ['A', 'a\nb', 'line break'],
  ['A', 'a\r', 'line break'],
  ['A', 'a\0b', 'control character'],
  ['A', '\x1b[31m', 'control character'],
  ['A', '\ud800', 'no valid Unicode'],
  ['A', 'x'.repeat(32 * 1024 + 1), '32 KiB'],
])('%j=%j is refused with the reason', (name, value, reason) => {
  expect(environmentProblem(name, value)).toContain(reason)
})

test('all variables together have limits', () => {
  expect(environmentsProblem({ A: 'x', B: 'y' })).toBeUndefined()
  const many = Object.fromEntries(Array.from({ length: 257 }, (_, i) => [`V${i}`, 'x']))
  expect(environmentsProblem(many)).toContain('at most 256')
  expect(environmentsProblem({ A: 'x'.repeat(30_000), B: 'y'.repeat(30_000), C: 'z'.repeat(10_000) })).toContain(
    '64 KiB',
  )
})

test('a machine’s own variables come on top of its image’s, and those too many are the image’s', () => {
  expect(environmentOver({ A: 'image', B: 'image' }, { A: 'own', C: 'own' })).toEqual({
    A: 'own',
    B: 'image',
    C: 'own',
  })
  const own = Object.fromEntries(Array.from({ length: 255 }, (_, n) => [`OWN_${n}`, 'x']))
  const together = environmentOver({ A: '1', B: '2' }, own)
  expect(environmentsProblem(together)).toBeUndefined()
  expect(together).toMatchObject({ ...own, A: '1' })
  expect(together).not.toHaveProperty('B')
})
