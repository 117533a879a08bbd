import { execFileSync } from 'node:child_process'
import { machineType } from '../qemu-state.ts'

/**
 * The release before that of the QEMU that is installed, whose kind of machine it still has.
 * @param version of the installed one, e.g. `7.2.22`
 * @returns e.g. `7.1.0`
 * @see qemu-system-x86_64(1), "-machine help"
 */
export function olderRelease(version: string): string {
  const own = machineType(version)
  const help = execFileSync('qemu-system-x86_64', ['-machine', 'help'], { encoding: 'utf8' })
  const types = [...help.matchAll(/^(pc-q35-(\d+\.\d+)) /gm)].filter(([, type]) => type !== own)
  const order = new Intl.Collator('en', { numeric: true })
  const newest = types
    .map(([, , release]) => release ?? '')
    .sort(order.compare)
    .at(-1)
  if (newest === undefined) throw new Error('QEMU has no kind of machine but its own')
  return `${newest}.0`
}
