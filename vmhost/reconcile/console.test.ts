import { execFileSync } from 'node:child_process'
import {
  appendFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { ConsoleReader } from './console.ts'

const log = { debug: () => {}, warn: () => {} }
const MiB = 2 ** 20

let directory = ''
let reader: ConsoleReader | undefined

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'berth-console-'))
  execFileSync('mkfifo', [join(directory, 'fifo')])
})

afterEach(async () => {
  await reader?.close()
  reader = undefined
  rmSync(directory, { recursive: true })
})

const file = (name: string) => join(directory, name)
const says = (text: string) => appendFileSync(file('fifo'), text)
const logged = (name = 'console.log') => readFileSync(file(name), 'utf8')
/** By its size first: nobody wants to see four megabytes compared. */
async function logIs(text: string): Promise<void> {
  await expect.poll(() => statSync(file('console.log')).size, { timeout: 60_000 }).toBe(text.length)
  expect(logged()).toBe(text)
}

/** A database that keeps what it is given, or is away as long as `away` says so. */
class Database {
  kept = ''
  away: Promise<void> | undefined
  onAttempt = () => {}
  async nextConsoleSeq() {
    return 1
  }
  async appendConsole(_id: number, _boot: number, _seq: number, bytes: Buffer) {
    this.onAttempt()
    await this.away
    this.kept += bytes.toString()
  }
}

function open(rows = new Database(), onPanic = () => {}): ConsoleReader {
  reader = new ConsoleReader({ machineId: 1, directory, fifo: file('fifo'), boot: 1, rows, log, onPanic })
  return reader
}

test('a log that is full is kept as one older, and only that one', async () => {
  const almost = (text: string) => {
    writeFileSync(file('console.log'), text)
    truncateSync(file('console.log'), 4 * MiB - 5)
  }
  almost('oldest')
  open()
  says('first\n')
  await logIs('first\n')
  expect(statSync(file('console.log.1')).size).toBe(4 * MiB - 5)
  expect(logged('console.log.1').slice(0, 6)).toBe('oldest')
  says('second\n')
  await logIs('first\nsecond\n')

  await reader?.close()
  almost('newer')
  open()
  says('third\n')
  await logIs('third\n')
  expect(logged('console.log.1').slice(0, 5)).toBe('newer')
  expect(readdirSync(directory).sort()).toEqual(['console.log', 'console.log.1', 'fifo'])
  // Root's, and nobody else reads what a guest printed.
  expect(statSync(file('console.log')).mode & 0o777).toBe(0o600)
})

test('a log that cannot be put aside writes into no other file, and goes on when it can', async () => {
  writeFileSync(file('console.log'), '')
  truncateSync(file('console.log'), 4 * MiB)
  // Nothing can be renamed onto a folder with something in it.
  execFileSync('mkdir', ['-p', file('console.log.1/full')])
  const rows = new Database()
  open(rows)
  says('lost here\n')
  // In the database all the same.
  await expect.poll(() => rows.kept, { timeout: 60_000 }).toBe('lost here\n')
  const other = file('other')
  writeFileSync(other, '')
  says('not there either\n')
  await expect.poll(() => rows.kept, { timeout: 60_000 }).toBe('lost here\nnot there either\n')
  rmSync(file('console.log.1'), { recursive: true })
  says('here again\n')
  await logIs('here again\n')
  expect(readFileSync(other, 'utf8')).toBe('')
})

test('closed while the database is away, it does not wait for ever', async () => {
  const rows = new Database()
  rows.away = new Promise(() => {})
  const console = open(rows)
  says('last words\n')
  await logIs('last words\n')
  await console.close()
})

test('what it is closed upon is in the database when it is closed, though another chunk is on its way', async () => {
  const rows = new Database()
  const attempted = Promise.withResolvers<void>()
  const back = Promise.withResolvers<void>()
  rows.onAttempt = attempted.resolve
  rows.away = back.promise
  const console = open(rows)
  says('one\n')
  await attempted.promise
  says('two\n')
  await logIs('one\ntwo\n')
  const closed = console.close()
  const first = Promise.race([closed.then(() => 'closed'), new Promise((resolve) => setTimeout(resolve, 300, 'waits'))])
  expect(await first).toBe('waits')
  back.resolve()
  await closed
  expect(rows.kept).toBe('one\ntwo\n')
})

test('a kernel that gives up is heard once, whatever its console repeats', async () => {
  let panics = 0
  const reader = open(new Database(), () => panics++)
  for (const why of ['one', 'two']) says(`[ 1.2] Kernel panic - not syncing: ${why}\r\n`)
  await expect.poll(() => reader.lastLines(1), { timeout: 60_000 }).toEqual(['[ 1.2] Kernel panic - not syncing: two'])
  expect(panics).toBe(1)
})

test('without a place for its log it is read all the same, and logged as soon as there is one', async () => {
  const database = new Database()
  const place = join(directory, 'place')
  const onPanic = () => {}
  reader = new ConsoleReader({
    machineId: 1,
    directory: place,
    fifo: file('fifo'),
    boot: 1,
    rows: database,
    log,
    onPanic,
  })
  says('lost\n')
  await expect.poll(() => database.kept, { timeout: 60_000 }).toBe('lost\n')
  mkdirSync(place)
  says('kept\n')
  await expect.poll(() => existsSync(join(place, 'console.log')), { timeout: 60_000 }).toBe(true)
  expect(readFileSync(join(place, 'console.log'), 'utf8')).toBe('kept\n')
})
