import { ImageError } from '../../images/errors.ts'
import { NetworkError } from '../../network/types.ts'
import { StorageError } from '../../storage/errors.ts'
import { MachineError } from '../specification.ts'

/** What the owner reads; the chain of causes goes to the log. */
export function reasonOf(error: unknown): string {
  const sentences = [MachineError, StorageError, NetworkError, ImageError]
  return sentences.some((kind) => error instanceof kind)
    ? messageOf(error)
    : `It could not be started: ${messageOf(error)}`
}

export function messageOf(error: unknown): string {
  // Neither the path nor the call is anything to its owner.
  if (isDiskFull(error) && !(error instanceof StorageError)) return "The server's disk is full"
  if (error instanceof NetworkError && error.cause instanceof Error) return `${error.message}: ${error.cause.message}`
  return error instanceof Error ? error.message : String(error)
}

export function oneLine(text: string): string {
  return text.replace(/[\x00-\x1f\x7f]+/g, ' ').slice(0, 500)
}

export function isDiskFull(error: unknown): boolean {
  for (let link = error; link instanceof Error; link = link.cause) {
    if ((link as NodeJS.ErrnoException).code === 'ENOSPC' || link.message.includes('No space left on device'))
      return true
  }
  return false
}
