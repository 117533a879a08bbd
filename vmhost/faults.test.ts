import { expect, test } from 'vitest'
import { breakOff } from './testing/faults/break-off.ts'

/**
 * Sleep, wake, checkpoint, restore and copy, broken off where it matters most: at the steps around those after which
 * there is no way back. `npm run soak -- faults` has every step of each, under every fault.
 */
const LIMIT_MS = 900_000

const selections = [
  'sleep=vmhost=^(before (hypervisor: stop|rename|hypervisor: quit)|after hypervisor: migrate$)',
  'sleep=power=^before (sync machines/N$|hypervisor: quit)',
  'sleep=full=^before (create .*state|rename)',
  'sleep=beneath=^before rename',
  'wake=vmhost=^(before rename machines/N/memory|after hypervisor: cont)',
  'wake=hypervisor=^before rename machines/N/memory',
  'wake=full=^before (create .*started|start of)',
  'checkpoint=vmhost=^before (hypervisor: cont|rename)',
  'restore=vmhost=^before rename machines/N/restore/',
  'restore=full=^before (cp checkpoints.*begun|rename machines/N/restore/root.raw)',
  'cp=vmhost=^before rename machines/.new-N N',
  'cp=full=^before (create machines/.new-N/machine.json|start of)',
  'cp=beneath=^before create machines/.new-N/machine.json',
]

test(
  'whatever breaks an operation off, and at whichever step: nothing is lost but what is said, and nothing is left',
  async () => {
    const rounds: string[] = []
    const failed = await breakOff(selections, (line) => rounds.push(line))
    expect(failed).toEqual([])
    expect(rounds.filter((line) => line.includes('did not come to this step'))).toEqual([])
    for (const selection of selections) {
      const [operation, fault] = selection.split('=')
      expect(
        rounds.some((line) => line.startsWith(`${operation} | ${fault} |`)),
        selection,
      ).toBe(true)
    }
  },
  LIMIT_MS,
)
