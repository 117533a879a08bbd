/**
 * What one does to machines as they are, from the list and from a machine's own page: each is one command for however
 * many, with its way back. Where programs end, which nothing takes back, it asks for the name before, or for how many.
 */
import { errorsIn } from '../../api/exec.ts'
import type { Machine } from '../../api/live.ts'
import type { CommandButtonProps } from '../../parts/CommandButton.tsx'

type One = Pick<Machine, 'vm_name' | 'status'>

export type Action = {
  label: string
  /** the command */
  verb: string
  /** whether it would do something to a machine as it is */
  fits: (machine: One) => boolean
  /** the command that takes it back */
  back?: string
  /** what is in memory is gone after it; said then: what does not end it, or what remains */
  ends?: { instead?: string; remains?: string; brings?: string }
}

const is =
  (...statuses: string[]) =>
  ({ status }: One) =>
    statuses.includes(status)

const hasMemory = is('running', 'asleep', 'paused')

export const POWER: readonly Action[] = [
  { label: 'Wake', verb: 'wake', fits: is('asleep'), back: 'sleep' },
  { label: 'Resume', verb: 'resume', fits: is('paused'), back: 'pause' },
  { label: 'Start', verb: 'start', fits: is('stopped'), back: 'stop' },
  { label: 'Sleep', verb: 'sleep', fits: is('running'), back: 'wake' },
  { label: 'Pause', verb: 'pause', fits: is('running', 'asleep'), back: 'resume' },
  {
    label: 'Restart',
    verb: 'restart',
    fits: is('running', 'asleep', 'paused', 'failed'),
    ends: { instead: 'Sleep keeps it.' },
  },
  {
    label: 'Stop',
    verb: 'stop',
    fits: is('running', 'asleep', 'paused', 'failed', 'creating'),
    back: 'start',
    ends: { instead: 'Sleep keeps it.', brings: 'Undo starts from the disk; what was in memory stays gone.' },
  },
]

export const TRASH: Action = {
  label: 'Trash',
  verb: 'rm',
  fits: () => true,
  back: 'untrash',
  ends: {
    remains: 'The disk can be had back for 7 days, unless its space is needed.',
    brings: 'Undo brings the disk back, and starts from it what ran; what was in memory stays gone.',
  },
}

export const ACTIONS: readonly Action[] = [...POWER, TRASH]

/** The action on some machines, as a button takes it. */
export function actOn(
  { label, verb, back, ends }: Action,
  machines: readonly One[],
): Omit<CommandButtonProps, 'children'> & { words: readonly string[] } {
  const names = machines.map(({ vm_name: name }) => name)
  const undo =
    back === undefined
      ? undefined
      : (document: unknown) => {
          const failed = errorsIn(document) ?? {}
          const done = names.filter((name) => !Object.hasOwn(failed, name))
          return done.length === 0 ? undefined : [back, ...done]
        }
  const losing = machines.filter(hasMemory)
  if (!ends || losing.length === 0) return { words: [verb, ...names], undo }
  const [only = '', ...others] = names
  return {
    words: [verb, ...names],
    undo,
    brings: ends.brings,
    confirm: others.length === 0 ? only : String(names.length),
    title: `${label} ${called(machines)}`,
    warning: lossOf(losing, ends),
  }
}

/** What of them is gone for good, in sentences. */
function lossOf(machines: readonly One[], { instead, remains }: NonNullable<Action['ends']>): string {
  const running = machines.filter(is('running'))
  const asleep = machines.filter(is('asleep', 'paused'))
  return [
    running.length > 0 && `What runs in ${listed(running)} ends.`,
    running.length > 0 && instead,
    asleep.length > 0 &&
      `What ${listed(asleep)} had in memory is lost. To have it end in order, wake ${asleep.length === 1 ? 'it' : 'them'} first.`,
    remains,
  ]
    .filter(Boolean)
    .join(' ')
}

const called = (machines: readonly One[]) =>
  machines.length === 1 ? (machines[0]?.vm_name ?? '') : `${machines.length} machines`

/** The command below has all of them. */
const NAMES_LISTED = 12

function listed(machines: readonly One[]): string {
  if (machines.length === 1) return called(machines)
  const names = machines.slice(0, NAMES_LISTED).map(({ vm_name: name }) => name)
  const more = machines.length - names.length
  return `${called(machines)} (${names.join(', ')}${more > 0 ? ` and ${more} more` : ''})`
}
