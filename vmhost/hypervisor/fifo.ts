import { closeSync, constants, openSync } from 'node:fs'
import { Socket } from 'node:net'

/**
 * Reads what a hypervisor writes into one of its FIFOs. Opened for writing too: without any writer a FIFO is at its
 * end, and the hypervisor may come later than this.
 * @returns what ends it
 */
export function readFifo(path: string, onChunk: (chunk: Buffer) => void): () => void {
  const descriptor = openSync(path, constants.O_RDWR | constants.O_NONBLOCK)
  try {
    const socket = new Socket({ fd: descriptor, readable: true, writable: false })
    socket.on('data', onChunk)
    socket.on('error', () => {})
    socket.resume()
    // Events alone shall keep no process from ending.
    socket.unref()
    return () => socket.destroy()
  } catch (error) {
    closeSync(descriptor)
    throw error
  }
}
