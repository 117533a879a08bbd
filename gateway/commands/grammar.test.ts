import { execFileSync } from 'node:child_process'
import { describe, expect, it } from 'vitest'
import { parseMoney } from '../billing/money.ts'
import { defineCommand } from './command.ts'
import { CommandError } from './error.ts'
import { nearest } from './nearest.ts'
import { parseCommand } from './parse.ts'
import { random } from './testing/random.ts'
import { parseDuration, parseSize, sayBytes, sayDuration } from './values.ts'
import { LineCutter, quoteWord, scanWords, splitLines, splitWords } from './words.ts'

const refused = (step: () => unknown): CommandError => {
  try {
    step()
  } catch (error) {
    if (error instanceof CommandError) return error
    throw error
  }
  throw new Error('was not refused')
}

describe('words', () => {
  it.each([
    [`new demo`, ['new', 'demo']],
    [`  a\t b  `, ['a', 'b']],
    [`'a b' "c d" e\\ f`, ['a b', 'c d', 'e f']],
    [`a'b'"c"d`, ['abcd']],
    [`'' ""`, ['', '']],
    [`"a\\"b\\\\c\\$d\\n"`, ['a"b\\c$d\\n']],
    [`'a\\b'`, ['a\\b']],
    [`a\\\nb`, ['ab']],
    [`"two\nlines"`, ['two\nlines']],
    [`$HOME *.txt ~ #no`, ['$HOME', '*.txt', '~', '#no']],
    [`--env=K="a | b"`, ['--env=K=a | b']],
    [`ls\r\n`, ['ls']],
    [``, []],
  ])('of %j', (line, words) => {
    expect(splitWords(line)).toEqual(words)
  })

  it('are what a POSIX shell makes of the same text', () => {
    const pick = random(7)
    const pieces = ['a', 'B', '7', ' ', '  ', "'", '"', '\\', '=', '-', '/', 'é', '漢', '#', '{', '!', '%', '@', ',']
    let compared = 0
    for (let round = 0; round < 200; round++) {
      const line = `x${Array.from({ length: 1 + pick(14) }, () => pieces[pick(pieces.length)]).join('')}`
      let words: string[]
      try {
        words = splitWords(line)
      } catch {
        continue
      }
      // A word that begins with # is a comment to a shell, and the lobby has none.
      if (/(^|\s)#/.test(line)) continue
      const shell = execFileSync('/bin/dash', ['-c', `set -f; printf '%s\\0' ${line}`]).toString()
      expect(words, line).toEqual(shell.split('\0').slice(0, -1))
      compared++
    }
    expect(compared).toBeGreaterThan(30)
  })

  it('that were quoted are read back as they were', () => {
    const pick = random(3)
    for (let round = 0; round < 2000; round++) {
      const word = Array.from({ length: pick(12) }, () =>
        String.fromCodePoint(1 + pick(round % 2 ? 127 : 0xd7ff)),
      ).join('')
      expect(splitWords(`a ${quoteWord(word)} b`), JSON.stringify(word)).toEqual(['a', word, 'b'])
    }
  })

  it.each(['ls | wc', 'a & b', 'a; b', 'a > f', 'a < f', '(a)', 'a\nb', 'a && b'])(
    'refuses the operator in %j',
    (line) => {
      expect(refused(() => splitWords(line))).toMatchObject({ exit: 2, code: 'usage' })
    },
  )

  it('says how an operator for a machine is meant', () => {
    expect(refused(() => splitWords('ssh demo ls | wc')).wayOn).toBe("ssh demo 'ls | wc'")
  })

  it.each([`a 'b`, `a "b`, 'a \\'])('refuses the open end of %j', (line) => {
    expect(refused(() => splitWords(line)).exit).toBe(2)
  })

  it('never hang or throw anything but a usage error, whatever the bytes', () => {
    const pick = random(11)
    for (let round = 0; round < 5000; round++) {
      const line = Array.from({ length: pick(30) }, () => String.fromCharCode(pick(260))).join('')
      try {
        splitWords(line)
      } catch (error) {
        expect(error).toBeInstanceOf(CommandError)
      }
      for (const word of scanWords(line, true)) expect(word.end).toBeGreaterThan(word.start)
    }
  })

  it('split a script at line breaks outside quotes', () => {
    expect(splitLines(`a 'b\nc' d\ne\\\nf\ng`)).toEqual({ lines: [`a 'b\nc' d`, 'e\\\nf'], rest: 'g' })
  })

  it('split it alike when it arrives in pieces', () => {
    const pick = random(5)
    for (let round = 0; round < 500; round++) {
      const text = Array.from({ length: pick(40) }, () => `a '"\\\r\n\n`[pick(8)]).join('')
      const cutter = new LineCutter()
      const lines: string[] = []
      for (let at = 0; at < text.length; ) {
        const end = at + 1 + pick(4)
        lines.push(...cutter.push(text.slice(at, end)))
        at = end
      }
      expect({ lines, rest: cutter.rest }, JSON.stringify(text)).toEqual(splitLines(text))
    }
  })
})

describe('flags', () => {
  const command = defineCommand({
    name: 'try',
    summary: 'a command',
    group: 'lobby',
    flags: {
      image: { type: 'string', summary: '' },
      cpu: { type: 'integer', min: 1, max: 8, summary: '' },
      memory: { type: 'size', summary: '' },
      idle: { type: 'duration', never: true, summary: '' },
      env: { type: 'string', repeated: true, summary: '' },
      long: { type: 'boolean', short: 'l', summary: '' },
      follow: { type: 'boolean', short: 'f', summary: '' },
      expires: { type: 'duration', aliases: ['exp'], summary: '' },
      group: { type: 'string', choices: ['tag', 'status'], summary: '' },
    },
    arguments: { name: { label: 'NAME' }, rest: { label: 'REST', repeated: true, optional: true } },
    run: async () => ({ json: null, text: '' }),
  })
  const flags = (line: string) => parseCommand(command, splitWords(line)).flags

  it('take a value behind = or a blank, and any order with the arguments', () => {
    expect(flags('demo --image=base')).toMatchObject({ image: 'base' })
    expect(flags('--image base demo')).toMatchObject({ image: 'base' })
    expect(flags('demo --image=')).toMatchObject({ image: '' })
    expect(flags('demo --env A=1 --env=B=2=3')).toMatchObject({ env: ['A=1', 'B=2=3'] })
  })

  it('have types', () => {
    expect(flags('demo --cpu 2 --memory 4G --idle 1h30m')).toMatchObject({
      cpu: 2,
      memory: 4 * 2 ** 30,
      idle: 5_400_000,
    })
    expect(flags('demo --idle never --exp 7d')).toMatchObject({ idle: 'never', expires: 7 * 86_400_000 })
    expect(flags('demo -lf')).toMatchObject({ long: true, follow: true })
    expect(flags('demo --long=false')).toMatchObject({ long: false })
  })

  it('end at --', () => {
    const { args, flags: read } = parseCommand(command, splitWords('-- --image -l'))
    expect(args).toEqual({ name: '--image', rest: ['-l'] })
    expect(read.long).toBeUndefined()
  })

  it.each([
    ['demo --imagee base', /no flag --imagee/, /--image/],
    ['demo --cpu many', /whole number/, undefined],
    ['demo --cpu 9', /between 1 and 8/, undefined],
    ['demo --memory 12', /4G/, undefined],
    ['demo --idle soon', /30m/, undefined],
    ['demo --group tags', /tag or status/, /--group=tag/],
    ['demo --cpu', /wants a value/, undefined],
    ['demo --long=maybe', /switch/, undefined],
    ['demo --cpu 1 --cpu 2', /twice/, undefined],
    ['', /wants NAME/, /try NAME/],
  ])('%j is refused', (line, message, wayOn) => {
    const error = refused(() => parseCommand(command, splitWords(line)))
    expect(error.exit).toBe(2)
    expect(error.message).toMatch(message)
    if (wayOn) expect(error.wayOn).toMatch(wayOn)
  })

  it('leave words behind the first argument alone where they are for another program', () => {
    const through = defineCommand({
      name: 'ssh',
      summary: '',
      group: 'lobby',
      passThrough: true,
      flags: { long: { type: 'boolean', short: 'l', summary: '' } },
      arguments: { name: { label: 'NAME' }, command: { label: 'CMD', repeated: true, optional: true } },
      run: async () => ({ json: null, text: '' }),
    })
    const { args, flags: read, json } = parseCommand(through, splitWords('-l demo ls -l --json -- x'))
    expect(args).toEqual({ name: 'demo', command: ['ls', '-l', '--json', '--', 'x'] })
    expect([read.long, json]).toEqual([true, false])
  })

  it('never throw anything but a usage error, whatever is typed', () => {
    const pick = random(5)
    const pieces = [
      'demo',
      '-',
      '--',
      '---',
      '-l',
      '-x',
      '--image',
      '--image=',
      '=',
      '--=',
      '-=',
      '',
      '--cpu=3',
      '__proto__',
      '--__proto__',
      '--constructor=1',
    ]
    for (let round = 0; round < 3000; round++) {
      const words = Array.from({ length: pick(6) }, () => pieces[pick(pieces.length)] ?? '')
      try {
        parseCommand(command, words)
      } catch (error) {
        expect(error, JSON.stringify(words)).toBeInstanceOf(CommandError)
      }
    }
  })
})

describe('values', () => {
  it.each([
    ['4G', 4 * 2 ** 30],
    ['512m', 512 * 2 ** 20],
    ['1.5GiB', 1.5 * 2 ** 30],
    ['2 TB', 2 * 2 ** 40],
  ])('the size %s', (text, bytes) => {
    expect(parseSize(text, 'x')).toBe(bytes)
  })
  it.each(['', 'G', '4', '-4G', '4GG', '1e3G', '99999999999999G'])('no size: %j', (text) => {
    expect(refused(() => parseSize(text, 'x')).exit).toBe(2)
  })
  it.each(['', '5', 'm', '-5m', '0s', '1h 30m', '1y', '5201w'])('no duration: %j', (text) => {
    expect(refused(() => parseDuration(text, 'x')).exit).toBe(2)
  })
  it.each([
    ['12', /^x wants a size/, 'with its unit: 12G or 12M'],
    ['99999999999999G', /^x is too large: 99999999999999G$/, undefined],
    ['12 apples', /^x wants a size/, undefined],
  ])('no size, %j, is told what is wrong with it', (text, message, wayOn) => {
    const error = refused(() => parseSize(text, 'x'))
    expect([error.message, error.wayOn]).toEqual([expect.stringMatching(message), wayOn])
  })
  it.each([
    ['30', /^x wants a duration/, 'with its unit: 30m or 30h'],
    ['9999999999999s', /^x is at most 5200w/, undefined],
    [`${'9'.repeat(40)}w`, /^x is at most 5200w/, undefined],
  ])('no duration, %j, is told what is wrong with it', (text, message, wayOn) => {
    const error = refused(() => parseDuration(text, 'x'))
    expect([error.message, error.wayOn]).toEqual([expect.stringMatching(message), wayOn])
  })
  it.each([
    ['1000000000', /^x is less than a billion USD, not 1000000000$/],
    ['0.1234567', /^x is in millionths of a USD at most, not 0\.1234567$/],
    ['1e3', /^x wants an amount in USD such as 50/],
  ])('no amount, %j, is told what is wrong with it', (text, message) => {
    expect(refused(() => parseMoney(text, 'x')).message).toMatch(message)
  })
  it('are said as people say them', () => {
    expect([0, 512, 2 ** 20 * 512, 2 ** 30 * 1.5, 2 ** 40].map(sayBytes)).toEqual([
      '0 B',
      '512 B',
      '512 MiB',
      '1.5 GiB',
      '1 TiB',
    ])
    expect([400, 12_000, 180_000, 7_500_000, 86_400_000 * 4].map(sayDuration)).toEqual([
      '0.4 s',
      '12 s',
      '3 min',
      '2 h 5 min',
      '4 days',
    ])
  })
  it('suggest what was meant, and nothing when nothing is near', () => {
    const commands = ['ls', 'new', 'start', 'restart', 'rename']
    expect([nearest('lss', commands), nearest('strat', commands), nearest('qqqq', commands)]).toEqual([
      'ls',
      'start',
      undefined,
    ])
  })
})
