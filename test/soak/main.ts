/**
 * `npm run soak [-- KIND] [--rounds N] [--seed N] [--only TEXT]`, kills unless told otherwise:
 *
 *     kills    rounds of kill -9 at random moments of new, rm and restart; 50
 *     cycles   sleep and wake, every file and a running program's counter compared each time; 200
 *     cloud-hypervisor
 *              the same under Cloud Hypervisor, which CLOUD_HYPERVISOR names; where KVM does not work, in an emulated
 *              server that has it; 20
 *     wakes    twenty machines that sleep, woken at once; 3 times
 *     faults   sleep, wake, checkpoint, restore and copy broken off at each of their steps, by kill -9 of the vmhost or
 *              of the hypervisors, a power cut, a full disk; once. `--only restore=full=rename` picks some
 *     ledger   kill -9 of vmhost, gateway and Postgres while a machine talks, sleeps and wakes: what it counted itself, what
 *              the far side counted and the ledger are equal to the byte, and its running time to the second; 50
 *
 * Ends with `N passed, N failed`; a failed round of kills or ledger prints its seed, which plays it again.
 */
import { parseArgs } from 'node:util'
import { soakCloudHypervisor } from './cloud-hypervisor.ts'
import { soakCycles } from './cycles.ts'
import { soakFaults } from './faults.ts'
import { soakKills } from './kills.ts'
import { soakLedger } from './ledger.ts'
import { soakWakes } from './wakes.ts'

const kinds = {
  kills: { rounds: 50, run: soakKills },
  cycles: { rounds: 200, run: soakCycles },
  'cloud-hypervisor': { rounds: 20, run: soakCloudHypervisor },
  wakes: { rounds: 3, run: soakWakes },
  faults: { rounds: 1, run: soakFaults },
  ledger: { rounds: 50, run: soakLedger },
} as const

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    rounds: { type: 'string' },
    seed: { type: 'string', default: String(Date.now() % 100_000) },
    only: { type: 'string', default: '' },
  },
})
const [kind = 'kills', more] = positionals
const chosen = Object.hasOwn(kinds, kind) ? kinds[kind as keyof typeof kinds] : undefined
const rounds = Number(values.rounds ?? chosen?.rounds)
const seed = Number(values.seed)
if (!chosen || more !== undefined || !Number.isInteger(rounds) || rounds < 1 || !Number.isInteger(seed)) {
  console.error(`usage: npm run soak -- [${Object.keys(kinds).join('|')}] [--rounds N] [--seed N] [--only TEXT]`)
  process.exit(2)
}
const { passed, failed } = await chosen.run({ rounds, seed, only: values.only })
console.log(`${passed} passed, ${failed} failed`)
process.exitCode = failed === 0 ? 0 : 1
