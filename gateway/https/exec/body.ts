import type { IncomingMessage } from 'node:http'

export const BODY_LIMIT_BYTES = 65_536
/** Of a body that is refused, so much is read all the same. */
const OVERFLOW_BYTES = 1_048_576
const BODY_MS = 30_000
const DISCARD_MS = 3_000

/** `cut`: the client went away. */
export type Body = { line: string } | { problem: 'too_long' | 'too_slow' | 'not_text' | 'cut' }

/** The request's body, at most 64 KiB of UTF-8 without NUL. */
export async function readBody(request: IncomingMessage, timeoutMs = BODY_MS): Promise<Body> {
  const bytes = await readBytes(request, { timeoutMs })
  if ('problem' in bytes) return bytes
  try {
    const line = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
    return line.includes('\0') ? { problem: 'not_text' } : { line }
  } catch {
    return { problem: 'not_text' }
  }
}

/** Lets a client send what it is sending, for a moment: closed at once, it would not see why it was refused. Nothing of it is held. */
export async function discardBody(request: IncomingMessage): Promise<void> {
  if (!request.complete && !request.destroyed && !request.isPaused())
    await readBytes(request, { timeoutMs: DISCARD_MS, limitBytes: 0 })
}

/** The bytes as they came. */
export function readBytes(
  request: IncomingMessage,
  { timeoutMs, limitBytes = BODY_LIMIT_BYTES }: { timeoutMs: number; limitBytes?: number },
): Promise<Buffer | Extract<Body, { problem: string }>> {
  return new Promise((resolve) => {
    const chunks: Buffer[] = []
    let totalBytes = 0
    const isTooLong = () => totalBytes > limitBytes
    const end = (result: Parameters<typeof resolve>[0]) => {
      clearTimeout(timer)
      request.off('data', onData).off('end', onEnd).off('close', onClose).off('error', onClose)
      resolve(result)
    }
    const timer = setTimeout(() => end({ problem: isTooLong() ? 'too_long' : 'too_slow' }), timeoutMs)
    const onData = (chunk: Buffer) => {
      totalBytes += chunk.length
      if (isTooLong()) chunks.length = 0
      else chunks.push(chunk)
      if (totalBytes <= OVERFLOW_BYTES) return
      request.pause()
      end({ problem: 'too_long' })
    }
    const onEnd = () => end(isTooLong() ? { problem: 'too_long' } : Buffer.concat(chunks))
    const onClose = () => end({ problem: 'cut' })
    request.on('data', onData).once('end', onEnd).once('close', onClose).once('error', onClose)
  })
}
