import type { Hypervisor } from '../../hypervisor/driver.ts'
import { type FoundMemory, findMemory, readLoss } from '../../storage/memory.ts'
import { isOwn } from '../ownership.ts'
import { getUp } from '../sleeping.ts'
import { networkOf, readRunsWith } from '../starting.ts'
import type { Life } from './life.ts'
import type { Sleep } from './sleep.ts'
import type { MachineState } from './state.ts'

/**
 * Takes over what an earlier vmhost, which may have been killed at any step, has left of a machine.
 *
 *     hypervisor, memory/ whole        -> saved, and not ended yet, or restored, and not running yet: asleep
 *     hypervisor, memory.used/         -> it was restored and may not have been let run: goes on
 *     hypervisor, memory.new/          -> it was on its way to sleep: goes on
 *     hypervisor, of a template        -> as long as it is not ready, it may not have been let run: goes on
 *     hypervisor                       -> a guest
 *     no hypervisor, memory/ whole     -> asleep
 *     no hypervisor, any other memory  -> it has lost what it was doing
 */
export async function adopt(state: MachineState, life: Life, sleep: Sleep): Promise<void> {
  const { world, log } = state
  const { driver, store } = world
  const directory = store.directoryOf(state.id)
  const runsWith = await readRunsWith(directory)
  // Its row may have become less, which is for its next start.
  const memoryBytes = Math.max(state.row.memoryBytes, runsWith?.memoryBytes ?? 0)
  let hypervisor: Hypervisor | undefined
  try {
    hypervisor = await driver.adopt(state.id, directory, memoryBytes)
  } catch (error) {
    // It does not answer and so cannot be trusted with a disk; its guest is started again from what it had synced.
    log.warn({ err: error }, 'the hypervisor does not answer and is ended')
    await driver.destroy(state.id, directory)
  }
  const files = await store.findMachine(state.id).catch(() => undefined)
  const isOurs = files !== undefined && isOwn(files, state.row)
  const memory = isOurs ? await findMemory(directory) : noMemory
  // Of a vmhost that was killed before it was told.
  if (isOurs) state.lost = await readLoss(directory)
  const { address, observedBoot, observedState, isReady } = state.row
  if (!hypervisor) {
    await sleep.findAsleep(memory)
    return
  }
  if (!isOurs || address === null || memory.saved || memory.damaged) {
    // Saved, and not ended yet, or restored, and not running yet: the memory is the machine.
    await hypervisor.quit()
    await sleep.findAsleep(memory)
    return
  }
  state.runsWith = runsWith
  await state.seeSize(hypervisor).catch((error) => log.warn({ err: error }, 'its size'))
  state.network = networkOf({ id: state.id, address }, state.runsWith?.commandLine)
  const ready = observedState === 'running' && isReady && !memory.used
  const guest = life.attend({
    hypervisor,
    files,
    boot: observedBoot,
    ready,
    restored: memory.used,
    slot: undefined,
    ...(memory.used ? { onReady: () => sleep.isAwake(hypervisor, files.directory) } : {}),
  })
  log.info({ pid: hypervisor.pid }, 'adopted')
  if (ready) await state.forgetLoss()
  const wasRestored = memory.used || (!ready && state.runsWith?.template !== undefined)
  if (wasRestored) await hypervisor.resume().catch((error) => log.warn({ err: error }, 'resume'))
  else if (memory.unfinished) {
    // It was on its way to sleep, and may stand still for no other reason.
    guest.lying = true
    await hypervisor.resume().catch((error) => log.warn({ err: error }, 'resume'))
    state.gettingUp = getUp({ hypervisor, agent: guest.agent, files, log })
      .catch((error) => log.warn({ err: error }, 'a guest that was found lying down'))
      .finally(() => {
        guest.lying = false
      })
  }
  await guest.catchUp()
}

const noMemory: FoundMemory = { damaged: false, used: false, unfinished: false }
