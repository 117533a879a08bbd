/**
 * `image.reference`: no reference; `image.not_found`: no such image; `image.credentials`: not for everybody;
 * `image.platform`: not for this kind of machine; `image.too_large`; `image.unreachable`: the registry does not answer as
 * one; `image.digest`: its bytes are not what was announced; `image.invalid`: it is no image, or a hostile one.
 */
export type ImageErrorCode =
  | 'image.reference'
  | 'image.not_found'
  | 'image.credentials'
  | 'image.platform'
  | 'image.too_large'
  | 'image.unreachable'
  | 'image.digest'
  | 'image.invalid'

/** An image cannot be had; the message is a sentence for the one who asked for it. */
export class ImageError extends Error {
  override readonly name = 'ImageError'
  readonly code: ImageErrorCode
  constructor(code: ImageErrorCode, message: string, options?: ErrorOptions) {
    super(message, options)
    this.code = code
  }
}

/** Of what a registry or a layer says: one short line without anything that a terminal would obey. */
export function printable(text: string, most = 120): string {
  const line = text.replace(/[^\x20-\x7e\u00a1-\uffff]+/g, '?')
  return line.length > most ? `${line.slice(0, most - 1)}…` : line
}

/** `12.3 MiB`, `4.0 GiB` */
export function sayBytes(bytes: number): string {
  const units = ['KiB', 'MiB', 'GiB', 'TiB']
  let value = bytes / 1024
  let unit = 0
  for (; value >= 1024 && unit < units.length - 1; unit++) value /= 1024
  return `${value.toFixed(1)} ${units[unit]}`
}
