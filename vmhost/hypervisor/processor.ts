import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'

/** What a guest that was saved under KVM needs of another server: the same processor, by model and features. */
export function processorKind(): string {
  const lines = readFileSync('/proc/cpuinfo', 'latin1').split('\n\n')[0]?.split('\n') ?? []
  const what = lines.filter((line) => /^(model name|flags)\s/.test(line)).join('\n')
  return createHash('sha256').update(what).digest('hex').slice(0, 12)
}
