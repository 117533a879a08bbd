/**
 * `node vmhost/testing/cycles.ts [--rounds N] [--under QEMU] [--emulated]`: a real guest sleeps and wakes so many times,
 * and is compared each time with what it was. Makes a tap where it is: to be run in a network namespace of its own. Of a
 * vmhost this is reconcile/ and what lies under it, without the process, its database and the gateway, of which
 * `npm run soak -- cycles` has all: under emulation at second hand they would keep none of the times that they keep under
 * KVM, which they take for granted there.
 */
import { parseArgs } from 'node:util'
import { Sleeper } from '../../test/e2e/sleeper.ts'
import { cyclesOf } from '../../test/soak/rounds.ts'
import { subjects } from '../hypervisor/testing/subjects.ts'
import { SleepingMachine } from './sleeping-machine.ts'

const { values } = parseArgs({
  options: {
    rounds: { type: 'string', default: '20' },
    under: { type: 'string', default: 'Cloud Hypervisor' },
    emulated: { type: 'boolean', default: false },
  },
})
/** Emulated at second hand, and beside others. */
const emulatedLimitMs = 900_000

const subject = subjects.find(({ name }) => name === values.under)
if (!subject) throw new Error(`no hypervisor called ${values.under}`)
if (subject.absentForLinux !== undefined) throw new Error(subject.absentForLinux)
await using machine = await SleepingMachine.make(subject, values.emulated)
const sleeper = new Sleeper(machine, values.emulated ? emulatedLimitMs : undefined)
await sleeper.until('running')
const { passed, failed } = await cyclesOf(sleeper, Number(values.rounds))
console.log(`${passed} passed, ${failed} failed`)
process.exitCode = failed === 0 ? 0 : 1
