import { setTimeout as sleep } from 'node:timers/promises'
import type { Logger } from 'pino'
import { type AgentChannel, ChannelError } from '../guest/channel.ts'
import type { Hypervisor, MachineSize } from '../hypervisor/driver.ts'
import { grownTo, noteRunsWith, type RunsWith } from './starting.ts'

/**
 * How a machine becomes larger while it runs.
 *
 *     wanted --its hypervisor gives what it can--> given --noted--> noted --its kernel uses its processors--> resized
 *
 * What is not given then, and everything that is taken away, waits for its next start. Whoever is cut off begins again:
 * how large a guest is by now its hypervisor says, and what was given is not given twice.
 */
export type Resizing = {
  readonly hypervisor: Pick<Hypervisor, 'resize'>
  readonly agent: Pick<AgentChannel, 'online'>
  /** the machine's own */
  readonly directory: string
  /** until its kernel uses its processors */
  readonly limitMs: number
  readonly log: Pick<Logger, 'info' | 'warn'>
}

const lookAgainMs = 200

/**
 * @param had what the guest ran with
 * @returns what it runs with from now on
 * @throws HypervisorError
 */
export async function giveSize(
  { hypervisor, agent, directory, limitMs, log }: Resizing,
  had: RunsWith,
  wanted: MachineSize,
): Promise<RunsWith> {
  const has = grownTo(had, await hypervisor.resize(wanted))
  if (has !== had) await noteRunsWith(directory, has)
  const { cpus, memoryBytes } = has
  if (has.startedCpus !== undefined && cpus > has.startedCpus) {
    const used = await useProcessors(agent, cpus, limitMs)
    if (used < cpus) log.warn({ cpus, used }, 'its kernel does not use all of its processors')
  }
  log.info({ wanted, cpus, memoryBytes }, 'resized while it runs, as far as it can be')
  return has
}

/** The guest hears of a processor some time after it was added. @returns how many its kernel uses */
async function useProcessors(agent: Resizing['agent'], cpus: number, limitMs: number): Promise<number> {
  for (const deadline = performance.now() + limitMs; ; await sleep(lookAgainMs)) {
    const leftMs = deadline - performance.now()
    try {
      const { cpuCount } = await agent.online({ timeoutMs: Math.max(leftMs, 1) })
      if (cpuCount >= cpus || leftMs <= 0) return cpuCount
    } catch (error) {
      if (!(error instanceof ChannelError)) throw error
      return 0
    }
  }
}
