import { readFileSync } from 'node:fs'

/** The system user that the gateway serves as; the launcher makes it. */
export const GATEWAY_USER = 'berth'

export class PrivilegeError extends Error {
  override readonly name = 'PrivilegeError'
}

/**
 * Gives root up for good: supplementary groups, group, user, in that order. A process that is not root stays who it is.
 * @returns who the process is now
 * @throws PrivilegeError when there is no such user, or root could be had back
 */
export function dropPrivileges(user = GATEWAY_USER): { uid: number } {
  if (!process.getuid || !process.setuid || !process.setgid || !process.setgroups || !process.getuid) {
    throw new PrivilegeError('this system has no users')
  }
  if (process.getuid() !== 0) return { uid: process.getuid() }
  const { uid, gid } = lookUp(user)
  process.setgroups([gid])
  process.setgid(gid)
  process.setuid(uid)
  let back = false
  try {
    process.setuid(0)
    back = true
  } catch {
    // As it must be.
  }
  if (back || process.getuid() !== uid) throw new PrivilegeError('root was given up and could be had back')
  return { uid }
}

function lookUp(user: string): { uid: number; gid: number } {
  const line = readFileSync('/etc/passwd', 'utf8')
    .split('\n')
    .find((entry) => entry.startsWith(`${user}:`))
  const [, , uid, gid] = line?.split(':') ?? []
  if (uid === undefined || gid === undefined) {
    throw new PrivilegeError(`there is no system user ${user}; npm start makes it`)
  }
  return { uid: Number(uid), gid: Number(gid) }
}
