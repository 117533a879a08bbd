import { describe, expect, it } from 'vitest'
import { RESERVED_NAMES } from '../../accounts/names.ts'
import { CommandError } from '../error.ts'
import { nameProblem, validName } from './valid.ts'
import { ADJECTIVES, NOUNS } from './word-lists.ts'

/** Parts that no name may have, also not across the hyphen. */
const OFFENSIVE = [
  'anal',
  'anus',
  'arse',
  'bitch',
  'boob',
  'clit',
  'cock',
  'coon',
  'crap',
  'cum',
  'cunt',
  'damn',
  'dick',
  'dyke',
  'fag',
  'fart',
  'fuck',
  'gook',
  'hell',
  'homo',
  'jap',
  'jew',
  'kike',
  'nazi',
  'negro',
  'nigg',
  'nude',
  'paki',
  'penis',
  'piss',
  'poo',
  'porn',
  'pube',
  'puss',
  'queer',
  'rape',
  'sex',
  'shit',
  'slave',
  'slut',
  'smut',
  'spic',
  'suck',
  'tit',
  'turd',
  'twat',
  'wank',
  'whore',
  'wog',
  'xxx',
  'kill',
  'dead',
  'dumb',
  'fat',
  'ugly',
  'hitler',
]

describe('two-word names', () => {
  const names = ADJECTIVES.flatMap((adjective) => NOUNS.map((noun) => `${adjective}-${noun}`))

  it('are more than ten thousand, none twice', () => {
    expect(names.length).toBeGreaterThan(10_000)
    expect(new Set(names).size).toBe(names.length)
  })

  it('are all good names of at most 20 characters', () => {
    expect(names.filter((name) => nameProblem(name) !== undefined || name.length > 20)).toEqual([])
  })

  it('never contain what nobody wants to be called, within words or across them', () => {
    const harmless = new Set(['fat', 'tit'])
    const found = names.filter((name) =>
      OFFENSIVE.some((part) => name.includes(part) || (!harmless.has(part) && name.replace('-', '').includes(part))),
    )
    expect(found).toEqual([])
  })

  it('have no two words that begin alike, as in cloudy-cloud', () => {
    const alike = names.filter((name) => {
      const [first = '', second = ''] = name.split('-')
      return first.slice(0, 4) === second.slice(0, 4)
    })
    expect(alike).toEqual([])
  })
})

describe('a name', () => {
  it.each(['a', 'demo', 'web-1', 'a1b2', 'x'.repeat(40)])('%s is good', (name) => {
    expect(validName(name)).toBe(name)
  })
  it.each([
    ['', /at least one/],
    ['Demo', /a-z/],
    ['1demo', /starts with a letter/],
    ['-demo', /starts with a letter/],
    ['demo-', /hyphens/],
    ['de--mo', /hyphens/],
    ['de_mo', /a-z, 0-9/],
    ['dé', /a-z, 0-9/],
    ['x'.repeat(41), /40/],
    ['root', /root/],
    ['lobby', /lobby/],
  ])('%j is refused with the rule', (name, sentence) => {
    expect(() => validName(name)).toThrow(CommandError)
    expect(nameProblem(name)).toMatch(sentence)
  })
  it('that is nearly good is mended in the way on', () => {
    try {
      validName('My Demo_2')
      expect.unreachable()
    } catch (error) {
      expect(error).toMatchObject({ wayOn: 'such as my-demo-2' })
    }
  })
  it('is never reserved', () => {
    for (const name of RESERVED_NAMES) expect(nameProblem(name), name).toBeDefined()
  })
})
