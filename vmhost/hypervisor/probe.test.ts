import { chmod, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import { chooseAccelerator, kernelGaveUp } from './probe.ts'

let home: string
beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), 'berth-probe-'))
})
afterEach(async () => {
  vi.unstubAllEnvs()
  await rm(home, { recursive: true })
})

/** Puts a program in QEMU's place. @returns how often it was started, and options that ask for it */
async function fakeQemu(command: string) {
  const marks = join(home, 'started')
  const path = join(home, 'qemu-system-x86_64')
  await writeFile(path, `#!/bin/sh\necho >> '${marks}'\n${command}\n`)
  await chmod(path, 0o755)
  vi.stubEnv('PATH', `${home}:${process.env.PATH}`)
  const kernel = join(home, 'kernel')
  const kvmDevice = join(home, 'kvm')
  await writeFile(kvmDevice, '')
  await chmod(kvmDevice, 0o666)
  const options = { ...common(), wanted: 'auto' as const, kernel, kvmDevice, limitMs: 60_000 }
  return { seen: async () => (await readFile(marks, 'utf8')).length, options }
}

const common = () => ({ qemuVersion: 'test', cachePath: join(home, 'kvm.json'), limitMs: 2000 })

describe('the KVM probe', () => {
  test('emulation asked for is emulation, without a try', async () => {
    const choice = await chooseAccelerator({ ...common(), wanted: 'tcg', kernel: undefined })
    expect(choice).toEqual({ accelerator: 'tcg', reason: 'BERTH_ACCEL=tcg asks for emulation', proved: false })
  })

  test('a QEMU that hangs is no proof: emulation, with the reason, and a start an hour later tries again', async () => {
    const hung = await fakeQemu('exec sleep 1000')
    expect(await chooseAccelerator({ ...hung.options, limitMs: 300 })).toEqual({
      accelerator: 'tcg',
      reason:
        '/dev/kvm is there, but a kernel started under it did not come up within 0.3 s, so machines are emulated and many times slower',
      proved: false,
    })
    const { seen, options } = await fakeQemu(`echo '${kernelGaveUp}'; exec sleep 1000`)
    expect(await chooseAccelerator(options)).toMatchObject({ accelerator: 'tcg', proved: false })
    const kept = JSON.parse(await readFile(options.cachePath, 'utf8'))
    await writeFile(options.cachePath, JSON.stringify({ ...kept, triedAtMs: kept.triedAtMs - 3_600_000 }))
    const proved = { accelerator: 'kvm', reason: 'a guest was started under KVM', proved: true }
    expect(await chooseAccelerator(options)).toEqual(proved)
    const times = await seen()
    // What was proved is not tried again.
    expect(await chooseAccelerator(options)).toEqual(proved)
    expect(await seen()).toBe(times)
  })

  test('what an earlier release kept of a failure is not believed', async () => {
    const { seen, options } = await fakeQemu(`echo '${kernelGaveUp}'; exec sleep 1000`)
    await chooseAccelerator(options)
    const kept = JSON.parse(await readFile(options.cachePath, 'utf8'))
    await writeFile(options.cachePath, JSON.stringify({ facts: kept.facts, problem: '/dev/kvm is there, but' }))
    expect(await chooseAccelerator(options)).toMatchObject({ accelerator: 'kvm', proved: true })
    expect(await seen()).toBe(2)
  })

  test('KVM asked for is KVM, and says when it was not proved', async () => {
    const choice = await chooseAccelerator({ ...common(), wanted: 'kvm', kernel: undefined })
    expect(choice.accelerator).toBe('kvm')
    expect(choice.reason).toMatch(/^BERTH_ACCEL=kvm asks for it, though/)
  })
})
