import { randomInt } from 'node:crypto'
import type { Tx } from '../machine-steps.ts'
import { ADJECTIVES, NOUNS } from './word-lists.ts'

const TRIES = 32

/** A free name of two words; with most of them taken, of two words and a number. */
export async function chooseName(tx: Tx): Promise<string> {
  const candidates = Array.from({ length: TRIES }, (_, n) =>
    n < TRIES / 2 ? twoWords() : `${twoWords()}-${randomInt(2, 1000)}`,
  )
  const taken = await tx.unsafe(
    'select name from machine_names where name = any($1) union all select name from lobby_names where name = any($1)',
    [candidates],
  )
  const names = new Set(taken.map((row) => String(row.name)))
  return candidates.find((name) => !names.has(name)) ?? `${twoWords()}-${randomInt(1000, 1_000_000)}`
}

function twoWords(): string {
  return `${ADJECTIVES[randomInt(ADJECTIVES.length)]}-${NOUNS[randomInt(NOUNS.length)]}`
}
