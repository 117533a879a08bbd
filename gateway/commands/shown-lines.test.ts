import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { parseSettings } from '../settings.ts'
import type { Command } from './command.ts'
import { DOCS } from './docs.ts'
import { findCommand, firstWords, membersOf } from './lookup.ts'
import { parseCommand } from './parse.ts'
import { TABLE } from './table.ts'
import { splitWords } from './words.ts'

const settings = parseSettings({
  DATABASE_URL: 'postgres://none',
  BERTH_DATA: '/var/lib/berth',
  BERTH_DOMAIN: 'host',
  BERTH_SSH: ':22',
})
const FIRST = new Set(firstWords(TABLE))

/** Whether a line is understood: a command by its name alone, or with words that it takes. @throws CommandError */
function read(line: string): Command {
  const words = splitWords(line)
  const { command, words: given } = findCommand(TABLE, words)
  if (given.length > 0) parseCommand(command, given)
  return command
}

/** `logs -f` in the midst of a sentence leaves out which machine. */
function problemOf(line: string): string {
  try {
    read(line)
    return ''
  } catch (error) {
    return (error as Error).message.replace(/^[a-z -]+ wants [A-Z]+$/, '')
  }
}

/** Of code in backquotes what is a line of the lobby: behind `ssh host`, or beginning with two words of one. */
function linesIn(markdown: string): string[] {
  return [...markdown.matchAll(/`([^`\n]+)`/g)].flatMap(([, code = '']) => {
    const behind = /^ssh (?:-p 2222 )?host (.+)$/.exec(code)?.[1]
    if (behind !== undefined) return [behind]
    const [first = '', second = ''] = code.split(' ')
    if (first === 'ssh' || !FIRST.has(first)) return []
    const isMember = membersOf(TABLE, first).includes(second)
    return isMember || /^[a-z-]+( (demo|host|--?[a-z-]+)\b.*)$/.test(code) ? [code] : []
  })
}

describe('what is shown as a line of the lobby is understood', () => {
  it.each(TABLE.map((command) => [command.name, command.examples ?? []] as const))(
    'examples of %s',
    (name, examples) => {
      for (const line of examples) expect(read(line.replace(/ < .*$/, '')).name, line).toBe(name)
    },
  )

  it.each(Object.entries(DOCS))('the page %s', (_topic, { text }) => {
    for (const line of text(settings).split('\n')) {
      const [, shown] = /^ {2}ssh host (.+)$/.exec(line) ?? []
      // One layer of quotes is for the shell that it is typed in.
      const own = shown && splitWords(shown.replace(/ < .*$/, '')).join(' ')
      if (own) expect(() => read(own), line).not.toThrow()
    }
  })

  it.each(['README.md', 'SPECIFICATION.md'])('%s', (file) => {
    const lines = linesIn(readFileSync(join(import.meta.dirname, '../..', file), 'utf8'))
    if (file === 'README.md') expect(lines.length).toBeGreaterThan(60)
    for (const line of lines) expect(problemOf(line), line).toBe('')
  })
})
