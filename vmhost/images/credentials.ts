import { readFile } from 'node:fs/promises'
import { z } from 'zod'

/**
 * The operator's word about registries: `registries.json` in the data directory, in the format that `docker login` and
 * `skopeo login --authfile` write.
 *
 *     {"auths": {"registry.example.com": {"auth": "<base64 of user:password>"}, "localhost:5000": {}}}
 *
 * A registry named there, be it without credentials, may be at a private address, or on this very server over plain HTTP:
 * anybody with an account may name any registry, and what else listens on those networks is none of theirs.
 */
export type Registries = { readonly auths: Readonly<Record<string, Login>> }

export type Login = { readonly username: string; readonly password: string } | { readonly username?: undefined }

const entrySchema = z.object({
  auth: z.string().optional(),
  username: z.string().optional(),
  password: z.string().optional(),
})
const fileSchema = z.object({ auths: z.record(z.string(), entrySchema).default({}) })

/** @throws Error that names the file when it is there and cannot be used */
export async function readRegistries(path: string): Promise<Registries> {
  let text: string
  try {
    text = await readFile(path, 'utf8')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return { auths: {} }
    throw new Error(`The operator's file of registries, ${path}, cannot be read`, { cause: error })
  }
  try {
    const { auths } = fileSchema.parse(JSON.parse(text))
    return { auths: Object.fromEntries(Object.entries(auths).map(([name, entry]) => [registryOf(name), login(entry)])) }
  } catch (error) {
    throw new Error(`The operator's file of registries, ${path}, is not as docker login writes it`, { cause: error })
  }
}

/** Docker writes its own as `https://index.…/v1/`. */
function registryOf(name: string): string {
  return name
    .replace(/^https?:\/\//, '')
    .replace(/\/.*$/, '')
    .replace(/^index\.(?=docker\.io$)/, '')
}

function login({ auth, username, password }: z.infer<typeof entrySchema>): Login {
  if (username !== undefined && password !== undefined) return { username, password }
  if (auth === undefined || auth === '') return {}
  const text = Buffer.from(auth, 'base64').toString('utf8')
  const colon = text.indexOf(':')
  if (colon < 1) throw new Error('auth is the base64 of user:password')
  return { username: text.slice(0, colon), password: text.slice(colon + 1) }
}
