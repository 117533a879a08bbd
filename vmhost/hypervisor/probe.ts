import { spawn } from 'node:child_process'
import { accessSync, constants, readFileSync } from 'node:fs'
import { mkdir, readFile, rename, writeFile } from 'node:fs/promises'
import { release } from 'node:os'
import { dirname } from 'node:path'
import type { Accelerator } from './driver.ts'
import { kvmGroups } from './privileges.ts'

/**
 * Which accelerator machines run under, and why in a sentence for people.
 * `proved`: a guest was really started under KVM, now or earlier in this boot of the server.
 */
export type AcceleratorChoice = { readonly accelerator: Accelerator; readonly reason: string; readonly proved: boolean }

export type ProbeOptions = {
  /** BERTH_ACCEL */
  readonly wanted: 'auto' | 'kvm' | 'tcg'
  /** the kernel that machines boot; without one nothing can be proved */
  readonly kernel: string | undefined
  readonly qemuVersion: string
  /**
   * file that keeps a proof until the server, its kernel, QEMU or the guests' kernel is another. What failed may have been
   * the moment's fault, as on a server that was busy: that is kept for an hour, so that not every start waits for it
   */
  readonly cachePath: string
  readonly limitMs?: number
  /** tests: another file than /dev/kvm */
  readonly kvmDevice?: string
}

/** What failed is tried again by the first start after so long. */
const believedMs = 3_600_000
/** An idle server needs 1 s for it; a kernel that hangs after the firmware is what is looked for. */
const probeLimitMs = 20_000
/** Without a root this is where every kernel ends, having run its drivers on all CPUs: as much proof as wanted. */
export const kernelGaveUp = 'Kernel panic - not syncing: VFS'

/**
 * /dev/kvm may exist and still not run an ordinary kernel (nested and para-virtual servers), so it is believed only
 * after a real kernel has come all the way to looking for its root disk under it.
 */
export async function chooseAccelerator(options: ProbeOptions): Promise<AcceleratorChoice> {
  if (options.wanted === 'tcg')
    return { accelerator: 'tcg', reason: 'BERTH_ACCEL=tcg asks for emulation', proved: false }
  const found = await proveKvm(options)
  if (found === undefined) return { accelerator: 'kvm', reason: 'a guest was started under KVM', proved: true }
  if (options.wanted === 'kvm') {
    return { accelerator: 'kvm', reason: `BERTH_ACCEL=kvm asks for it, though ${found}`, proved: false }
  }
  return { accelerator: 'tcg', reason: `${found}, so machines are emulated and many times slower`, proved: false }
}

/** @returns undefined when KVM runs a guest, else why not */
async function proveKvm(options: ProbeOptions): Promise<string | undefined> {
  const closed = kvmProblem(options.kvmDevice)
  if (closed !== undefined) return closed
  if (!options.kernel) return 'there is no guest kernel yet to prove KVM with'
  const facts = [bootId(), release(), options.qemuVersion, options.kernel].join(' ')
  const kept = await readFile(options.cachePath, 'utf8').catch(() => '')
  const cached = parseCache(kept)
  if (cached?.facts === facts) {
    if (cached.problem === null) return undefined
    const ageMs = Date.now() - (cached.triedAtMs ?? Number.NEGATIVE_INFINITY)
    if (ageMs >= 0 && ageMs < believedMs) return cached.problem
  }
  const problem = await tryKernel(options.kernel, options.limitMs ?? probeLimitMs)
  await mkdir(dirname(options.cachePath), { recursive: true })
  await writeFile(
    `${options.cachePath}.new`,
    JSON.stringify({ facts, problem: problem ?? null, triedAtMs: Date.now() }),
  )
  await rename(`${options.cachePath}.new`, options.cachePath)
  return problem
}

/** @returns why no hypervisor comes to KVM here; undefined when they do, which proves nothing yet */
export function kvmProblem(device = '/dev/kvm'): string | undefined {
  try {
    accessSync(device, constants.R_OK | constants.W_OK)
  } catch {
    return '/dev/kvm is missing: the processor has no virtualisation, or it is switched off'
  }
  const access = kvmGroups(device)
  return 'problem' in access ? access.problem : undefined
}

/** The server's boot, as a UUID. @see proc(5), /proc/sys/kernel/random/boot_id */
export function bootId(): string {
  return readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim()
}

function tryKernel(kernel: string, limitMs: number): Promise<string | undefined> {
  const child = spawn(
    'setpriv',
    // Ends with this process: nothing may be left of a probe.
    ['--pdeathsig', 'KILL', '--', 'qemu-system-x86_64', '-nodefaults', '-no-user-config', '-display', 'none']
      .concat(['-M', 'q35', '-accel', 'kvm', '-cpu', 'host', '-smp', '2', '-m', '256M', '-no-reboot'])
      .concat(['-kernel', kernel, '-append', 'console=ttyS0 panic=-1', '-serial', 'stdio']),
    { stdio: ['ignore', 'pipe', 'pipe'] },
  )
  return new Promise((resolve) => {
    let seen = ''
    let errors = ''
    const finish = (problem: string | undefined) => {
      clearTimeout(timer)
      child.kill('SIGKILL')
      // Whoever else has their other ends, as what a script in QEMU's place has started, is not waited for.
      child.stdout.destroy()
      child.stderr.destroy()
      resolve(problem)
    }
    const timer = setTimeout(() => {
      finish(`/dev/kvm is there, but a kernel started under it did not come up within ${limitMs / 1000} s`)
    }, limitMs)
    child.stdout.on('data', (chunk: Buffer) => {
      seen = (seen + chunk.toString('latin1')).slice(-4096)
      if (seen.includes(kernelGaveUp)) finish(undefined)
    })
    child.stderr.on('data', (chunk: Buffer) => {
      errors = (errors + chunk.toString('utf8')).slice(0, 4096)
    })
    child.once('error', (error) => finish(`QEMU cannot be started (${error.message})`))
    child.once('close', () => {
      const line = errors.split('\n').find((text) => text.startsWith('qemu-system-x86_64: ')) ?? ''
      const said = line.replace(/^qemu-system-x86_64: (error: )?/, '')
      finish(`/dev/kvm is there, but QEMU ended under it${said ? ` (${said})` : ''}`)
    })
  })
}

function parseCache(text: string): { facts: string; problem: string | null; triedAtMs?: number } | undefined {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}

/** Whether machines can run machines: the processor's own extension is there and KVM hands it on. */
export function nestedAvailable(): boolean {
  return ['kvm_intel', 'kvm_amd'].some((module) => {
    try {
      return /^[Y1]/.test(readFileSync(`/sys/module/${module}/parameters/nested`, 'utf8'))
    } catch {
      return false
    }
  })
}
