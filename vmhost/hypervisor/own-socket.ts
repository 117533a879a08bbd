import { closeSync, constants, fstatSync, openSync } from 'node:fs'
import { connect, Socket } from 'node:net'

/** Linux's: a descriptor that stands for the file, whatever its path leads to later. @see open(2) */
const O_PATH = 0o10000000

/**
 * Connects to a socket that a hypervisor listens on, in the folder that is open to its user. Who took it over could have a
 * link there, at any moment, to another machine's socket or a service of the server's, and this process is root: that
 * one would be paused, told who it is, ended. So what is connected to is the socket that was looked at, and it is its
 * user's own.
 * @param uid whose it must be; undefined: anybody's, by its path (tests)
 * @returns what emits `error` and `close` where there is none
 */
export function connectToOwn(path: string, uid: number | undefined): Socket {
  if (uid === undefined) return connect({ path })
  let descriptor: number | undefined
  try {
    descriptor = openSync(path, O_PATH | constants.O_NOFOLLOW)
    const found = fstatSync(descriptor)
    if (!found.isSocket() || found.uid !== uid) throw new Error(`${path} is not a socket of user ${uid}`)
    // That of a Unix socket is connected, or refused, when this returns. @see unix(7)
    return connect({ path: `/proc/self/fd/${descriptor}` })
  } catch (error) {
    return new Socket().destroy(error as Error)
  } finally {
    if (descriptor !== undefined) closeSync(descriptor)
  }
}
