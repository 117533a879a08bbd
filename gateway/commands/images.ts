import type { Completer } from './command.ts'

/** The images that a server with a live lease can make machines of. */
export const imageNames: Completer = async ({ app }) => {
  const rows = await app.sql<{ name: string }[]>`
    select distinct image->>'name' as name from hosts, jsonb_array_elements(images) as image
    where lease_expires_at > now() order by 1`
  return rows.map((row) => row.name)
}

/**
 * Whether it may be an image in a registry: `[registry/]name[:tag][@digest]`. Which it is, only the server that fetches it
 * can say.
 */
export function mayBeReference(text: string): boolean {
  return /^[A-Za-z0-9[][A-Za-z0-9._:/@[\]-]{0,199}$/.test(text) && !text.includes('..') && !text.endsWith('/')
}
