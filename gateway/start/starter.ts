import { readdirSync, readFileSync, statSync } from 'node:fs'
import { userInfo } from 'node:os'
import { join } from 'node:path'
import { isRecordable, nameInComment } from '../accounts/names.ts'
import { type KeyLine, PublicKeyError, parseKeyFile, parseKeyLine } from '../accounts/public-key.ts'
import { SettingsError } from '../settings.ts'

/** Keys and names of whoever starts the installation. */
export type Starter = {
  keys: KeyLine[]
  /** recorded for the first account, the starter's own last */
  names: string[]
  /** BERTH_OWNER was set and is no good; it stops the start only when there is no account yet */
  problem?: SettingsError
}

const MAX_FILE_BYTES = 1024 * 1024

/**
 * Reads what the first account is made from, as root, before privileges are dropped: BERTH_OWNER (key lines, or paths
 * of key files, separated by commas or line breaks), else `~/.ssh/id_*.pub` and `authorized_keys` of the starter, who
 * with sudo is the user that typed it.
 */
export function readStarter(owner: string | undefined, env: Record<string, string | undefined>): Starter {
  const starterName = env.SUDO_USER || env.USER || env.LOGNAME || userInfo().username
  const found: KeyLine[] = []
  let problem: SettingsError | undefined
  try {
    if (owner === undefined) found.push(...homesOf(env).flatMap(keysOfHome))
    else found.push(...keysOfSetting(owner))
  } catch (error) {
    if (!(error instanceof SettingsError)) throw error
    problem = error
  }
  const keys = [...new Map(found.map((line) => [line.key.fingerprint, line])).values()]
  const names = keys.map((line) => nameInComment(line.comment)).filter((name) => name !== undefined)
  return {
    keys,
    names: [...new Set([...names.filter((name) => name !== starterName), starterName])].filter(isRecordable),
    ...(problem ? { problem } : {}),
  }
}

function keysOfSetting(owner: string): KeyLine[] {
  const keys = owner
    .split(/[,\n]/)
    .map((entry) => entry.trim())
    .filter((entry) => entry !== '')
    .flatMap((entry) => (entry.startsWith('/') ? keysOfFile(entry) : [keyOf(entry)]))
  if (keys.length === 0) throw new SettingsError(`BERTH_OWNER is ${JSON.stringify(owner)}: no key was found there`)
  return keys
}

function keyOf(entry: string): KeyLine {
  try {
    return parseKeyLine(entry)
  } catch (cause) {
    if (!(cause instanceof PublicKeyError)) throw cause
    throw new SettingsError(
      `BERTH_OWNER is ${JSON.stringify(entry)}: ${cause.message}; expected public keys or absolute paths of key files`,
      { cause },
    )
  }
}

function keysOfFile(path: string): KeyLine[] {
  try {
    return parseKeyFile(readFileSync(path, 'utf8'))
  } catch (cause) {
    throw new SettingsError(`BERTH_OWNER is ${JSON.stringify(path)}: the file cannot be read`, { cause })
  }
}

/** With sudo, the home of the user who typed it comes first; root's own counts too. */
function homesOf(env: Record<string, string | undefined>): string[] {
  const passwd = readFileSync('/etc/passwd', 'utf8')
  const homeOf = (user: string) =>
    passwd
      .split('\n')
      .find((line) => line.startsWith(`${user}:`))
      ?.split(':')[5]
  const homes = [env.SUDO_USER && homeOf(env.SUDO_USER), env.BERTH_STARTER_HOME || env.HOME || userInfo().homedir]
  return [...new Set(homes.filter((home) => home?.startsWith('/')))].filter((home) => home !== undefined) as string[]
}

function keysOfHome(home: string): KeyLine[] {
  const directory = join(home, '.ssh')
  let files: string[]
  try {
    files = readdirSync(directory)
  } catch {
    return []
  }
  return (
    files
      .filter((file) => /^id_.*\.pub$/.test(file) || file === 'authorized_keys')
      // The starter's own first: an account has not room for any number.
      .sort((a, b) => Number(a === 'authorized_keys') - Number(b === 'authorized_keys') || (a < b ? -1 : 1))
      .flatMap((file) => {
        const path = join(directory, file)
        try {
          const { size } = statSync(path)
          return size <= MAX_FILE_BYTES ? parseKeyFile(readFileSync(path, 'utf8')) : []
        } catch {
          return []
        }
      })
  )
}
