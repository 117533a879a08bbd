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
