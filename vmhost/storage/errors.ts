/** `storage.full`: there is no room; `storage.invalid`: what was asked for cannot be; `storage.missing`: no such file here. */
export type StorageErrorCode = 'storage.full' | 'storage.invalid' | 'storage.missing' | 'storage.failed'

/** The message is a sentence that the owner of a machine may read. */
export class StorageError extends Error {
  override readonly name = 'StorageError'
  readonly code: StorageErrorCode
  constructor(code: StorageErrorCode, message: string, options?: ErrorOptions) {
    super(message, options)
    this.code = code
  }
}

/** @see errno(3) */
const shortages = ['EMFILE', 'ENFILE', 'ENOMEM', 'EAGAIN']

/**
 * What to go on with where a file cannot be read. That this process has no descriptor or memory left to look says
 * nothing of the file: whoever took it for missing would remove or end what it belongs to.
 * @returns for `catch` @throws the error, where it is of such a shortage
 */
export function unlessShort<T>(instead: (error: NodeJS.ErrnoException) => T): (error: NodeJS.ErrnoException) => T {
  return (error) => {
    if (shortages.includes(error.code ?? '')) throw error
    return instead(error)
  }
}
