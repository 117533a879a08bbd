import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { ChannelError } from '../guest/channel.ts'
import { Introduction } from './introduction.ts'

const wire = (name: string) =>
  Buffer.concat([Buffer.from([0, 0, 0, 11]), Buffer.from('ssh-ed25519'), Buffer.from(name)])
const line = (name: string) => `ssh-ed25519 ${wire(name).toString('base64')}`

/** A machine's row and keys, and what an agent would have heard of them. */
class Machine {
  row = { name: 'demo', env: {} as Record<string, string>, command: 'auto', accountId: 1 }
  keys = ['one']
  heard: string[] = []
  refuses = false
  /** holds what it was told back */
  gate: Promise<void> | undefined
  readonly introduction: Introduction

  constructor(directory: string) {
    const told = async (what: string) => {
      await this.gate
      if (this.refuses) throw new ChannelError('agent.timeout', 'no answer')
      this.heard.push(what)
    }
    const record = { image: 'minimal', imageHash: '0', loginUser: 'dev', init: true, systemId: 'f'.repeat(32) }
    this.introduction = new Introduction({
      channel: {
        identify: async ({ hostname }) => {
          await told(hostname)
          return { loginUid: 1000 }
        },
        updateKeys: (lines) => told(lines.join()),
      },
      files: { directory, record, hostKey: 'secret' },
      owner: this,
      world: { gatewayKey: () => undefined, rows: { keysOf: async () => this.keys.map(wire) } },
      log: { warn: () => {} },
      limitMs: 1000,
    })
  }
}

let directory = ''

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'berth-introduction-'))
})

afterEach(() => rmSync(directory, { recursive: true }))

test('it is told once who it is; a vmhost that adopts it brings the keys alone', async () => {
  const machine = new Machine(directory)
  await machine.introduction.introduce(false)
  expect(machine.introduction.made).toBe(true)
  await machine.introduction.update()
  expect(machine.heard).toEqual(['demo'])
  const adopted = new Machine(directory)
  await adopted.introduction.introduce(true)
  expect(adopted.heard).toEqual([line('one')])
  // One that says it knows nothing, after a boot, is told all.
  await adopted.introduction.introduce(false)
  expect(adopted.heard).toEqual([line('one'), 'demo'])
})

test('it knows who it is, too, where that cannot be noted', async () => {
  const machine = new Machine(join(directory, 'gone'))
  await machine.introduction.introduce(false)
  expect(machine.introduction.made).toBe(true)
})

test('a new name that it does not take holds up no keys, and is told again', async () => {
  const machine = new Machine(directory)
  await machine.introduction.introduce(false)
  machine.row = { ...machine.row, name: 'renamed' }
  machine.refuses = true
  await machine.introduction.update()
  machine.refuses = false
  machine.keys = ['two']
  await machine.introduction.updateKeys()
  expect(machine.heard).toEqual(['demo', line('two')])
  await machine.introduction.update()
  expect(machine.heard).toEqual(['demo', line('two'), 'renamed'])
})

test('keys that it did not take are given again at the next look, and then no more', async () => {
  const machine = new Machine(directory)
  await machine.introduction.introduce(false)
  machine.keys = []
  machine.refuses = true
  await machine.introduction.updateKeys()
  machine.refuses = false
  await machine.introduction.update()
  await machine.introduction.update()
  expect(machine.heard).toEqual(['demo', ''])
})

test('what the boot before was told does not count for this one', async () => {
  const machine = new Machine(directory)
  const gate = Promise.withResolvers<void>()
  machine.gate = gate.promise
  const telling = machine.introduction.introduce(false)
  machine.introduction.forget()
  gate.resolve()
  await telling
  expect(machine.introduction.made).toBe(false)
})

test('while it is being told, another look tells nothing a second time', async () => {
  const machine = new Machine(directory)
  await machine.introduction.introduce(false)
  machine.row = { ...machine.row, name: 'renamed' }
  const gate = Promise.withResolvers<void>()
  machine.gate = gate.promise
  const first = machine.introduction.update()
  await machine.introduction.update()
  gate.resolve()
  await first
  expect(machine.heard).toEqual(['demo', 'renamed'])
})

test('a guest that asks over and over is told once at a time, and not again within a second', async () => {
  const machine = new Machine(directory)
  const gate = Promise.withResolvers<void>()
  machine.gate = gate.promise
  const asked = Array.from({ length: 50 }, () => machine.introduction.introduce(false))
  gate.resolve()
  await Promise.all(asked)
  expect(machine.heard).toEqual(['demo'])
  const before = performance.now()
  machine.introduction.forget()
  await machine.introduction.introduce(false)
  expect(performance.now() - before).toBeGreaterThan(900)
  expect(machine.heard).toEqual(['demo', 'demo'])
})

test('keys on their way are no answer to a guest that says it knows nothing', async () => {
  await new Machine(directory).introduction.introduce(false)
  const adopted = new Machine(directory)
  await Promise.all([adopted.introduction.introduce(true), adopted.introduction.introduce(false)])
  expect(adopted.heard).toEqual([line('one'), 'demo'])
})
