import { z } from 'zod'
import type { Cidr } from './address.ts'
import { runCommand } from './command.ts'
import { devicesTowards, findUplinks } from './host.ts'
import { type Kernel, readSysctl } from './kernel.ts'

/**
 * The devices that forward for machines only. Forwarding is switched on where machines' packets pass, not for the whole
 * host (`ip_forward`). A device on which it was off before is remembered as `opened`, in a set beside the rules, so that the
 * memory ends when the setting does: at a reboot. Once the host forwards anyway (Docker, a router), nothing is held back.
 */
export async function findOpened(devices: readonly string[], before: readonly string[]): Promise<string[]> {
  if ((await readSysctl('ipv4/conf/all/forwarding')) === '1') return []
  return [...new Set([...before, ...(await findClosed(devices))])].sort()
}

/** The devices by which machines' packets leave and answers to them come in: those must forward. Sorted. */
export function findOutwards(allow: readonly Cidr[], kernel: Kernel): string[] {
  return [...new Set([...findUplinks(kernel), ...devicesTowards(allow, kernel)])].sort()
}

/** @returns those of the devices on which forwarding is off */
export async function findClosed(devices: readonly string[]): Promise<string[]> {
  const values = await Promise.all(devices.map((device) => readSysctl(`ipv4/conf/${device}/forwarding`)))
  return devices.filter((_, index) => values[index] === '0')
}

const openedSchema = z.object({
  nftables: z.array(z.object({ set: z.object({ elem: z.array(z.string()).optional() }).optional() })),
})

/** @returns the devices that an earlier process opened; none after a reboot */
export async function readOpened(): Promise<string[]> {
  // No table yet is the usual reason to fail; any other shows when the rules are applied.
  const list = await runCommand('nft', ['-j', 'list', 'set', 'inet', 'berth', 'opened']).catch(() => '{"nftables":[]}')
  return openedSchema.parse(JSON.parse(list)).nftables.flatMap(({ set }) => set?.elem ?? [])
}
