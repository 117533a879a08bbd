import { PassThrough } from 'node:stream'
import { describe, expect, it } from 'vitest'
import { random } from '../commands/testing/random.ts'
import { historyOf } from './history.ts'
import { KeyDecoder } from './keys.ts'
import { layOut, visible } from './layout.ts'
import { Screen } from './testing/screen.ts'
import { typist } from './testing/typist.ts'

async function typed(bytes: string | Buffer): Promise<string> {
  const person = typist()
  const line = person.read()
  await person.type(bytes)
  const read = await line
  return read.kind === 'line' ? read.text : read.kind
}

describe('keys', () => {
  it.each([
    ['hello\r', 'hello'],
    ['hello\n', 'hello'],
    ['héllo 漢字 👩‍👩‍👧 x\r', 'héllo 漢字 👩‍👩‍👧 x'],
    ['world\x01hello \r', 'hello world'],
    ['hello\x01\x06\x06X\r', 'heXllo'],
    ['hello\x02\x02X\r', 'helXlo'],
    ['abc\x1b[D\x1b[DX\x1b[CY\r', 'aXbYc'],
    ['abc\x1bOD\x1bODX\r', 'aXbc'],
    ['abc\x1b[HX\x1b[FY\r', 'XabcY'],
    ['abc\x1b[1~X\x1b[4~Y\r', 'XabcY'],
    ['abc\x1b[1~\x1b[3~\r', 'bc'],
    ['abc\x7f\x08\r', 'a'],
    ['abc\x01\x04\r', 'bc'],
    ['one two\x17three\r', 'one three'],
    ['one two\x01\x0b\x19\x19\r', 'one twoone two'],
    ['one two\x15x\x19\r', 'xone two'],
    ['one two three\x17\x17\x19\r', 'one two three'],
    ['one two\x1bbX\r', 'one Xtwo'],
    ['one two\x01\x1bfX\r', 'oneX two'],
    ['one two\x01\x1bd\r', ' two'],
    ['one two\x1b\x7f\r', 'one '],
    ['one two\x1b[1;5DX\r', 'one Xtwo'],
    ['ab\x14\r', 'ba'],
    ['👍🏽a\x02\x7f\r', 'a'],
    ['e\u0301x\x02\x7f\r', 'x'],
    ['\x03', 'interrupted'],
    ['abc\x03', 'interrupted'],
    ['\x04', 'closed'],
    ['\x1b[99;99~\x1b[Mabc\x1b[200~\x1b[201~ok\r', 'abcok'],
  ])('%j', async (bytes, line) => {
    expect(await typed(bytes)).toBe(line)
  })

  it('are the same however the bytes are cut', () => {
    const bytes = Buffer.from('hé漢👍\x1b[1;5D\x1bf\x1b[200~pa\nste\x1b[201~\x1bOH\r')
    const whole = JSON.stringify(joined(new KeyDecoder().feed(bytes)))
    for (let cut = 1; cut < bytes.length; cut++) {
      const decoder = new KeyDecoder()
      const keys = [...decoder.feed(bytes.subarray(0, cut)), ...decoder.feed(bytes.subarray(cut))]
      expect(JSON.stringify(joined(keys)), `cut at ${cut}`).toBe(whole)
    }
    const single = new KeyDecoder()
    expect(JSON.stringify(joined([...bytes].flatMap((byte) => single.feed(Buffer.of(byte)))))).toBe(whole)
  })

  it('never keep more than a bounded rest, whatever comes', () => {
    const pick = random(2)
    for (let round = 0; round < 300; round++) {
      const decoder = new KeyDecoder(1000)
      for (let n = 0; n < 20; n++) {
        const bytes = Buffer.from(Array.from({ length: pick(80) }, () => (pick(4) ? pick(256) : 0x1b)))
        for (const key of decoder.feed(bytes)) {
          if (key.kind === 'paste') expect(key.text.length).toBeLessThanOrEqual(1000)
          if (key.kind === 'text') expect(key.text).not.toMatch(/[\x00-\x1f\x7f]/)
        }
      }
    }
  })

  function joined(keys: ReturnType<KeyDecoder['feed']>) {
    const out: typeof keys = []
    for (const key of keys) {
      const last = out.at(-1)
      if (key.kind === 'text' && last?.kind === 'text') last.text += key.text
      else out.push({ ...key })
    }
    return out
  }
})

describe('a paste', () => {
  it('presses no Enter and drives nothing', async () => {
    expect(await typed('\x1b[200~one\r\ntwo\x03\x1b[A\tx\n\x1b[201~\r')).toBe('one\ntwo[A  x')
  })
  it('of megabytes is cut at a bound and the editor goes on', async () => {
    const person = typist()
    const line = person.read()
    await person.type(`\x1b[200~${'y'.repeat(3_000_000)}\x1b[201~`)
    await person.type('\x15after\r')
    expect(await line).toEqual({ kind: 'line', text: 'after' })
    expect(person.screen.bells).toBeGreaterThan(0)
  })
  it('without brackets is typed ahead: each line goes to the next reader', async () => {
    const person = typist()
    const first = person.read()
    await person.type('one\rtwo\r\nthree\n')
    expect(await first).toEqual({ kind: 'line', text: 'one' })
    expect(await person.read()).toEqual({ kind: 'line', text: 'two' })
    expect(await person.read()).toEqual({ kind: 'line', text: 'three' })
  })
})

describe('the screen', () => {
  it.each([3, 10, 20, 80])('shows at %i columns what was typed, and the cursor where it is', async (columns) => {
    const pick = random(columns)
    const keys = [
      'a',
      'b ',
      '漢',
      'é',
      '👍',
      '\x01',
      '\x05',
      '\x02',
      '\x06',
      '\x7f',
      '\x17',
      '\x0b',
      '\x19',
      'word ',
      '\x1bb',
      '\x1bf',
      '\x14',
    ]
    for (let round = 0; round < 25; round++) {
      const person = typist(columns)
      const line = person.read({ prompt: '> ' })
      let all = ''
      for (let n = 0; n < 40; n++) {
        const key = keys[pick(keys.length)] ?? ''
        all += key
        await person.type(key)
      }
      const { row, column } = person.screen
      const lines = person.screen.lines
      await person.type('\r')
      const read = await line
      const text = read.kind === 'line' ? read.text : ''
      const fresh = new Screen(columns)
      fresh.write(`> ${Array.from(text).map(visible).join('')}`)
      expect(lines, JSON.stringify(all)).toEqual(fresh.lines)
      expect(row).toBeLessThanOrEqual(fresh.rows.length)
      expect(column).toBeLessThan(columns)
      // The cursor ends on a fresh row below the text.
      expect([person.screen.column, person.screen.row >= fresh.row]).toEqual([0, true])
    }
  })

  it('has the cursor of every position where the terminal would draw the next character', () => {
    const graphemes = ['a', '漢', 'b', '字', 'c', 'd', '漢', '字', 'e']
    for (let columns = 2; columns < 14; columns++) {
      for (let cursor = 0; cursor <= graphemes.length; cursor++) {
        const screen = new Screen(columns)
        screen.write(`> ${graphemes.slice(0, cursor).join('')}x`)
        const { cursor: place } = layOut('> ', graphemes.slice(0, cursor), cursor, columns)
        expect(screen.rows[place.row]?.[place.column], `${columns} columns, cursor ${cursor}`).toBe('x')
      }
    }
  })

  it('is drawn anew when the window changes', async () => {
    const person = typist(40)
    const line = person.read()
    await person.type('a line that is long enough to be wrapped somewhere')
    for (const columns of [20, 100, 13]) {
      person.resize(columns)
      await person.type('')
      expect(person.screen.lines.join('')).toContain('berth> a line'.slice(0, columns - 1))
      expect(Math.max(...person.screen.lines.map((row) => row.length))).toBeLessThanOrEqual(columns)
    }
    await person.type('\r')
    expect(await line).toMatchObject({ kind: 'line' })
  })

  it('gets no control sequence on a dumb terminal', async () => {
    const person = typist(20, 'dumb')
    const line = person.read()
    await person.type('a line longer than the row')
    await person.type('\x01x\x05y\r')
    expect(await line).toEqual({ kind: 'line', text: 'xa line longer than the rowy' })
    expect(person.raw()).not.toContain('\x1b')
  })
})

describe('a client that does not look at its screen', () => {
  it('costs no memory, however often its window changes', async () => {
    const stdout = new PassThrough()
    const held = () => stdout.readableLength + stdout.writableLength
    const resizes = new Set<() => void>()
    const onResize = (listener: () => void) => {
      resizes.add(listener)
      return () => resizes.delete(listener)
    }
    const person = typist()
    const line = person.read({ stdout, terminal: { term: 'xterm', columns: 80, rows: 24, onResize } })
    await person.type('x'.repeat(3000))
    for (let turn = 0; turn < 20; turn++) {
      for (let n = 0; n < 10; n++) for (const listener of resizes) listener()
      await new Promise((resolve) => setImmediate(resolve))
    }
    expect(held()).toBeLessThan(100_000)
    // It sees the line when it looks again, and nothing is left behind when it is done.
    let seen = ''
    stdout.on('data', (bytes: Buffer) => {
      seen += bytes
    })
    await person.type('y')
    expect(seen).toMatch(/xy$/)
    await person.type('\r')
    expect(await line).toMatchObject({ kind: 'line' })
    expect(stdout.listenerCount('drain')).toBe(0)
  })

  it('is drawn for once, whatever number of keys comes at a time', async () => {
    const person = typist()
    const line = person.read()
    await person.type('x'.repeat(2000))
    const before = person.raw().length
    for (let n = 0; n < 200; n++) person.stdin.write('y')
    await person.type('')
    expect(person.raw().length - before).toBeLessThan(100_000)
    await person.type('\r')
    expect(await line).toMatchObject({ text: 'x'.repeat(2000) + 'y'.repeat(200) })
  })
})

describe('history', () => {
  it('is walked with the arrows, and the draft is kept', async () => {
    const history = historyOf(-1)
    for (const line of ['first', 'second', ' secret', 'second']) history.add(line)
    const person = typist()
    const read = person.read({ history })
    await person.type('draft\x1b[A\x1b[A\x1b[B\x1b[B!\r')
    expect(await read).toEqual({ kind: 'line', text: 'draft!' })
    const again = person.read({ history })
    await person.type('\x10\x10\r')
    expect(await again).toEqual({ kind: 'line', text: 'first' })
  })
  it('is searched with Ctrl-R', async () => {
    const history = historyOf(-2)
    for (const line of ['new demo', 'ls', 'new api --memory 2G', 'logs api']) history.add(line)
    const person = typist()
    const read = person.read({ history })
    await person.type('\x12new')
    expect(person.screen.lines.at(-1)).toBe("(search) 'new': new api --memory 2G")
    await person.type('\x12\x05 -l\r')
    expect(await read).toEqual({ kind: 'line', text: 'new demo -l' })
  })
  it('is searched for what somebody would type, and no more', async () => {
    const history = historyOf(-5)
    history.add('ls')
    const person = typist()
    const read = person.read({ history })
    await person.type('\x12l')
    for (let n = 0; n < 20; n++) await person.type('s'.repeat(100))
    expect(person.screen.lines.join('').length).toBeLessThan(500)
    await person.type('\x07\r')
    expect(await read).toEqual({ kind: 'line', text: '' })
  })
  it('of one account is bounded and not shared with another', () => {
    const history = historyOf(-3)
    for (let n = 0; n < 1000; n++) history.add(`line ${n}`)
    expect(history.lines.length).toBe(200)
    expect(historyOf(-4).lines).toEqual([])
    expect(historyOf(-3)).toBe(history)
  })
})

describe('Tab', () => {
  const complete = async (before: string) => {
    const start = before.lastIndexOf(' ') + 1
    const words = start === 0 ? ['start ', 'stop ', 'ls '] : ['demo ', 'demo-2 ']
    return { start, candidates: words.filter((word) => word.startsWith(before.slice(start))) }
  }
  it('completes what is certain, and lists the rest when pressed again', async () => {
    const person = typist(40)
    const read = person.read({ complete })
    await person.type('s\t')
    expect(person.screen.lines).toEqual(['berth> st'])
    await person.type('\t')
    expect(person.screen.lines).toEqual(['berth> st', 'start  stop', 'berth> st'])
    await person.type('a\td\t')
    expect(person.screen.lines.at(-1)).toBe('berth> start demo')
    await person.type('-\t\r')
    expect(await read).toEqual({ kind: 'line', text: 'start demo-2 ' })
  })
  it('keeps the order of what is typed while it looks', async () => {
    const person = typist()
    let answer = (_: { start: number; candidates: string[] }) => {}
    const read = person.read({
      complete: () =>
        new Promise((resolve) => {
          answer = resolve
        }),
    })
    await person.type('st\tdemo')
    await person.type(' more\r')
    expect(person.screen.lines).toEqual(['berth> st'])
    answer({ start: 0, candidates: ['start '] })
    expect(await read).toEqual({ kind: 'line', text: 'start demo more' })
  })
})
