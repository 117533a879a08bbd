import type { ControlContext } from './control.ts'

/** Something that pages load, also compressed. */
export type Asset = { type: string; plain: Buffer; gzip?: Buffer | undefined; brotli?: Buffer | undefined }

/** Sends it as small as the browser takes it. There is a hash in its address, so a browser may keep it for ever. */
export function sendAsset(context: ControlContext, { type, plain, gzip, brotli }: Asset): Response {
  const accepted = context.req.header('accept-encoding') ?? ''
  const [encoding, bytes] =
    brotli && /\bbr\b/i.test(accepted)
      ? ['br', brotli]
      : gzip && /\bgzip\b/i.test(accepted)
        ? ['gzip', gzip]
        : [undefined, plain]
  return context.body(new Uint8Array(bytes), 200, {
    'Content-Type': type,
    ...(encoding === undefined ? {} : { 'Content-Encoding': encoding }),
    Vary: 'Accept-Encoding',
    'Cache-Control': 'public, max-age=31536000, immutable',
    'X-Content-Type-Options': 'nosniff',
    'Cross-Origin-Resource-Policy': 'same-origin',
  })
}
