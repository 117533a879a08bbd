/** What is typed into the form of a machine's size, as a command. */
import type { MachineDocument, ResizeDocument } from './documents.ts'

export const GIBIBYTE = 2 ** 30

type Sizes = Pick<MachineDocument, 'vm_name' | 'allocated_cpus' | 'memory_capacity_bytes' | 'disk_capacity_bytes'>

export type Resizing = {
  words: readonly string[]
  /** undefined where a disk grows, which nothing takes back */
  undo: readonly string[] | undefined
  /** the disk in GiB when it grows */
  growsDisk: number | undefined
  /** why it cannot be asked for; empty when nothing was typed */
  problem: string | undefined
}

/** @param typed numbers as they were typed, memory and disk in GiB; empty: as it is */
export function resizeOf(machine: Sizes, typed: { cpus: string; memory: string; disk: string }): Resizing {
  const { vm_name: name, allocated_cpus, memory_capacity_bytes, disk_capacity_bytes } = machine
  const cpus = typed.cpus === '' ? undefined : Number(typed.cpus)
  const memory = typed.memory === '' ? undefined : Number(typed.memory)
  const disk = typed.disk === '' ? undefined : Number(typed.disk)
  const hasDisk = disk_capacity_bytes / GIBIBYTE
  const growsDisk = disk !== undefined && disk > hasDisk ? disk : undefined
  const flags = [
    ...(cpus === undefined ? [] : [`--cpu=${cpus}`]),
    ...(memory === undefined ? [] : [`--memory=${inMebibytes(memory)}M`]),
    ...(disk === undefined ? [] : [`--disk=${inMebibytes(disk)}M`]),
  ]
  const before = [
    ...(cpus === undefined ? [] : [`--cpu=${allocated_cpus}`]),
    ...(memory === undefined ? [] : [`--memory=${memory_capacity_bytes / 2 ** 20}M`]),
  ]
  return {
    words: ['resize', name, ...(flags.length > 0 ? flags : ['--cpu=N'])],
    undo: growsDisk === undefined && before.length > 0 ? ['resize', name, ...before] : undefined,
    growsDisk,
    problem: problemOf({ cpus, memory, disk, hasDisk }, flags.length),
  }
}

type Asked = { cpus: number | undefined; memory: number | undefined; disk: number | undefined; hasDisk: number }

function problemOf({ cpus, memory, disk, hasDisk }: Asked, count: number): string | undefined {
  if (count === 0) return ''
  if (cpus !== undefined && !(Number.isInteger(cpus) && cpus >= 1)) return 'CPUs are a whole number.'
  if (memory !== undefined && !(memory > 0)) return 'Memory is a number of GiB.'
  if (disk !== undefined && !(disk > 0)) return 'The disk is a number of GiB.'
  if (disk !== undefined && disk < hasDisk) return `The disk has ${tidy(hasDisk)} GiB, and a disk only grows.`
  return undefined
}

/** What came of it: what it has at once, and what from its next start on. */
export function toldOf(name: string, document: ResizeDocument): string[] {
  const { at_next_start, disk } = document
  const kinds = at_next_start.map((kind) => (kind === 'cpu' ? 'its CPUs' : 'its memory'))
  const grown = {
    grown: `The disk of ${name} has grown, and its filesystem with it.`,
    growing: `The disk of ${name} grows.`,
    'when it is awake': `The disk of ${name} grows when it is awake.`,
    'at its next start': `The disk of ${name} grows at its next start.`,
  }
  return [
    kinds.length === 0
      ? `${name} has its new size.`
      : `${name} has ${kinds.join(' and ')} from its next start on: restart ${name}`,
    ...(disk === undefined ? [] : [grown[disk]]),
  ]
}

export function inGibibytes(bytes: number): number {
  return tidy(bytes / GIBIBYTE)
}

function inMebibytes(gibibytes: number): number {
  return Math.round(gibibytes * 1024)
}

function tidy(number: number): number {
  return Math.round(number * 100) / 100
}
