/** Carries plans for taps out, many machines at a time. */

import { tapName } from './address.ts'
import { runCommand } from './command.ts'
import { forgetFlows } from './flows.ts'
import { isHalfMadeTap, isOurTap, planTap, readKernel, setTapSysctls } from './kernel.ts'
import { type MachineNetwork, NetworkError } from './types.ts'

type OnFailure = (machineId: number, error: Error) => void
type BeforeUp = (machineIds: readonly number[], down: ReadonlySet<number>) => Promise<void>

/**
 * Makes the taps of these machines what they should be.
 * @param gateway the gateway address
 * @param beforeUp what is to be done with these machines' taps, which are there, before any packet passes those that are
 *   `down` still
 * @param onFailure called for each machine that the kernel refuses; the others are not held up
 * @returns taps that were made, or had something put right
 */
export async function connectTaps(
  machines: readonly MachineNetwork[],
  gateway: string,
  beforeUp: BeforeUp,
  onFailure: OnFailure,
): Promise<string[]> {
  const touched = new Set<string>()
  const connect = async (some: readonly MachineNetwork[]): Promise<void> => {
    const kernel = await readKernel()
    const plans = some.map((machine) => {
      return { machine, tap: tapName(machine.machineId), ...planTap(machine, gateway, kernel) }
    })
    for (const { tap, create, configure } of plans) if (create.length + configure.length > 0) touched.add(tap)
    await runIpBatch(plans.flatMap(({ create }) => create))
    // Before they are up: no packet passes under other settings, or as part of another machine's connection.
    for (const { tap } of plans) if (await setTapSysctls(tap)) touched.add(tap)
    for (const { machine, isFresh } of plans) if (isFresh && !machine.goesOn) await forgetFlows(machine.address)
    const idsOf = (which: readonly { machine: MachineNetwork }[]) => which.map(({ machine }) => machine.machineId)
    await beforeUp(idsOf(plans), new Set(idsOf(plans.filter(({ isFresh }) => isFresh))))
    await runIpBatch(plans.flatMap(({ configure }) => configure))
  }
  await eachOrAll(machines, connect, ({ machineId }, error) => {
    touched.delete(tapName(machineId))
    onFailure(machineId, error)
  })
  return machines.map(({ machineId }) => tapName(machineId)).filter((tap) => touched.has(tap))
}

/**
 * Makes a tap without route or neighbour. The rules know no address for it, so that whatever comes out of it is dropped
 * as spoofed, and nothing is ever sent into it.
 * @param gateway the gateway address
 * @returns its name
 * @throws NetworkError
 */
export async function makeBareTap(machineId: number, uid: number, gateway: string): Promise<string> {
  const tap = tapName(machineId)
  const { create } = planTap({ machineId, uid, address: gateway }, gateway, await readKernel())
  await runIpBatch(create)
  await setTapSysctls(tap)
  await runIpBatch([`link set dev ${tap} up`])
  return tap
}

/**
 * Takes the taps of these machines away, those that are ours; the kernel takes address, route and neighbour with them.
 * @returns taps that are gone now and were not before
 */
export async function removeTaps(machineIds: readonly number[], onFailure: OnFailure): Promise<string[]> {
  if (machineIds.length === 0) return []
  const { links } = await readKernel()
  const found = machineIds.filter((machineId) => {
    const link = links.get(tapName(machineId))
    return link !== undefined && (isOurTap(link) || isHalfMadeTap(link))
  })
  const removed = new Set(found)
  const remove = (some: readonly number[]): Promise<void> =>
    runIpBatch(some.map((machineId) => `link delete dev ${tapName(machineId)}`))
  await eachOrAll(found, remove, (machineId, error) => {
    removed.delete(machineId)
    onFailure(machineId, error)
  })
  return [...removed].map(tapName)
}

/** Runs lines of `ip` in one process, up to the first that fails. @throws NetworkError */
export async function runIpBatch(lines: readonly string[]): Promise<void> {
  if (lines.length > 0) await runCommand('ip', ['-batch', '-'], lines.join('\n'))
}

/** Does `work` for all at once; when that fails, for each alone, and reports those that fail alone. */
async function eachOrAll<T>(
  items: readonly T[],
  work: (some: readonly T[]) => Promise<void>,
  onFailure: (item: T, error: Error) => void,
): Promise<void> {
  if (items.length === 0) return
  try {
    await work(items)
  } catch (error) {
    const [only, ...others] = items
    if (only !== undefined && others.length === 0) onFailure(only, asError(error))
    else for (const item of items) await eachOrAll([item], work, onFailure)
  }
}

export function asError(error: unknown): Error {
  return error instanceof Error ? error : new NetworkError(String(error))
}
