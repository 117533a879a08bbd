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
  if (error instanceof NetworkError && error.cause instanceof Error) return `${error.message}: ${error.cause.message}`
  return error instanceof Error ? error.message : String(error)
}

export function oneLine(text: string): string {
  return text.replace(/[\x00-\x1f\x7f]+/g, ' ').slice(0, 500)
}
