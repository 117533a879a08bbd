import { z } from 'zod'
import { runCommand } from './command.ts'
import { readSysctl } from './kernel.ts'

/**
 * The devices that forward for machines only. Forwarding is switched on where machines' packets pass, not for the whole
 * host (`ip_forward`). A device on which it was off before is remembered as `opened`, in a set beside the rules, so that the
 * memory ends when the setting does: at a reboot. Once the host forwards anyway (Docker, a router), nothing is held back.
 */
export async function findOpened(devices: readonly string[], before: readonly string[]): Promise<string[]> {
  if ((await readSysctl('ipv4/conf/all/forwarding')) === '1') return []
  const opened = new Set(before)
  for (const device of devices) if ((await readSysctl(`ipv4/conf/${device}/forwarding`)) === '0') opened.add(device)
  return [...opened].sort()
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
