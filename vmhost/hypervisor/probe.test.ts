import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { chooseAccelerator } from './probe.ts'
import { makeTinyGuest } from './tiny-guest.ts'

let home: string
beforeAll(async () => {
  home = await mkdtemp(join(tmpdir(), 'berth-probe-'))
})
afterAll(() => rm(home, { recursive: true }))

const common = () => ({ qemuVersion: 'test', cachePath: join(home, 'kvm.json'), limitMs: 2000 })

describe('the KVM probe', () => {
  test('emulation asked for is emulation, without a try', async () => {
    const choice = await chooseAccelerator({ ...common(), wanted: 'tcg', kernel: undefined })
    expect(choice).toEqual({ accelerator: 'tcg', reason: 'BERTH_ACCEL=tcg asks for emulation', proved: false })
  })

  test('a guest that never comes up is no proof: emulation, with the reason, and the answer is kept', async () => {
    const kernel = join(home, 'idle')
    await makeTinyGuest(kernel, 'idle')
    const first = await chooseAccelerator({ ...common(), wanted: 'auto', kernel })
    expect(first).toMatchObject({ accelerator: 'tcg', proved: false })
    expect(first.reason).toMatch(/^\/dev\/kvm is .*, so machines are emulated/)
    if (/missing|root alone/.test(first.reason)) return
    expect(JSON.parse(await readFile(join(home, 'kvm.json'), 'utf8')).problem).toMatch(/kvm/)
    const startedAt = Date.now()
    expect(await chooseAccelerator({ ...common(), wanted: 'auto', kernel })).toEqual(first)
    expect(Date.now() - startedAt).toBeLessThan(100)
  })

  test('KVM asked for is KVM, and says when it was not proved', async () => {
    const choice = await chooseAccelerator({ ...common(), wanted: 'kvm', kernel: undefined })
    expect(choice.accelerator).toBe('kvm')
    expect(choice.reason).toMatch(/^BERTH_ACCEL=kvm asks for it, though/)
  })
})
