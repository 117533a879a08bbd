/** What a pasted public key is, before it is added. */

export type Pasted = { algorithm: string; fingerprint: string; comment: string }

/**
 * The keys in what was pasted, as `ssh-keygen -l` has their fingerprints.
 * @returns undefined when a line of it is no public key
 */
export async function readPasted(text: string): Promise<Pasted[] | undefined> {
  const lines = text.split('\n').map((line) => line.trim())
  const found: Pasted[] = []
  for (const line of lines) {
    if (line === '' || line.startsWith('#')) continue
    const key = /^((?:ssh|ecdsa|sk)-[a-z0-9@.-]+)\s+([A-Za-z0-9+/]{16,}={0,2})(?:\s+(.*))?$/.exec(line)
    const blob = key && decode(key[2] ?? '')
    if (!key || !blob || !isKeyOf(blob, key[1] ?? '')) return undefined
    const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', blob))
    const base64 = btoa(String.fromCharCode(...digest)).replace(/=+$/, '')
    found.push({ algorithm: key[1] ?? '', fingerprint: `SHA256:${base64}`, comment: key[3] ?? '' })
  }
  return found.length > 0 ? found : undefined
}

export function isPrivateKey(text: string): boolean {
  return /BEGIN [A-Z ]*PRIVATE KEY/.test(text)
}

function decode(base64: string): Uint8Array<ArrayBuffer> | undefined {
  try {
    return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0))
  } catch {
    return undefined
  }
}

/** A key is a row of strings to its very end, the first of them its algorithm (RFC 4253, 6.6; RFC 8709, 4). */
function isKeyOf(blob: Uint8Array, algorithm: string): boolean {
  const view = new DataView(blob.buffer)
  let at = 0
  let first: string | undefined
  while (at + 4 <= blob.length) {
    const end = at + 4 + view.getUint32(at)
    first ??= new TextDecoder().decode(blob.subarray(at + 4, end))
    at = end
  }
  return at === blob.length && first === algorithm
}
