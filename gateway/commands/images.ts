import type { Completer } from './command.ts'

/** The images that a server with a live lease can make machines of. */
export const imageNames: Completer = async ({ app }) => {
  const rows = await app.sql<{ name: string }[]>`
    select distinct image->>'name' as name from hosts, jsonb_array_elements(images) as image
    where lease_expires_at > now() order by 1`
  return rows.map((row) => row.name)
}
