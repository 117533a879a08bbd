import { commandLine } from '../api/exec.ts'
import { Copy } from './Copy.tsx'

/** A command as one types it, with a button that copies it. */
export function CommandLine({ words }: { words: readonly string[] }) {
  return <Copy text={commandLine(words)} label="Copy the command" />
}
