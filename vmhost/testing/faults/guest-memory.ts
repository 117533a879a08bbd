import { closeSync, openSync, readFileSync, readSync, writeSync } from 'node:fs'

/**
 * What a guest of a few bytes holds, seen from outside: its memory in QEMU's, and its disk's file.
 *
 * A guest that does something does it in both: what is written into one is written into the other, so that a memory
 * which goes on beside a disk that it does not belong to is found out.
 */
export type Held = {
  /** what was written last */
  readonly epoch: number
  /** how often it was seen to run, and might have written */
  readonly ran: number
}

/** Where neither the firmware nor the guest comes. */
const heldAt = { memory: 0x1000000, disk: 0x100000 }
/** The firmware counts timer interrupts here, 18.2 a second, as long as the guest runs. @see BIOS data area, 0040:006C */
const ticksAt = 0x46c

export class GuestMemory {
  readonly #pid: number
  readonly #base: number

  /** @throws when there is no such process, or its memory is not this large */
  constructor(pid: number, memoryBytes: number) {
    this.#pid = pid
    const maps = readFileSync(`/proc/${pid}/maps`, 'latin1').split('\n')
    const base = maps
      .map((line) =>
        /^([0-9a-f]+)-([0-9a-f]+) rw/
          .exec(line)
          ?.slice(1)
          .map((word) => Number.parseInt(word, 16)),
      )
      .find((range) => range && (range[1] ?? 0) - (range[0] ?? 0) === memoryBytes)?.[0]
    if (base === undefined) throw new Error(`process ${pid} has no guest of ${memoryBytes} bytes`)
    this.#base = base
  }

  /** Grows as long as it runs. */
  get ticks(): number {
    return this.word(ticksAt)
  }

  /** @param at physical address of 32 bits */
  word(at: number): number {
    return this.#read(at, 4).readUInt32LE()
  }

  get held(): Held {
    return decoded(this.#read(heldAt.memory, 8))
  }

  set held(held: Held) {
    const memory = openSync(`/proc/${this.#pid}/mem`, 'r+')
    writeSync(memory, encoded(held), 0, 8, this.#base + heldAt.memory)
    closeSync(memory)
  }

  #read(at: number, bytes: number): Buffer {
    const memory = openSync(`/proc/${this.#pid}/mem`, 'r')
    const read = Buffer.alloc(bytes)
    readSync(memory, read, 0, bytes, this.#base + at)
    closeSync(memory)
    return read
  }
}

export function heldByDisk(disk: string): Held {
  const file = openSync(disk, 'r')
  const read = Buffer.alloc(8)
  readSync(file, read, 0, 8, heldAt.disk)
  closeSync(file)
  return decoded(read)
}

/** As a program that has it synced. */
export function holdOnDisk(disk: string, held: Held): void {
  const file = openSync(disk, 'rs+')
  writeSync(file, encoded(held), 0, 8, heldAt.disk)
  closeSync(file)
}

function encoded({ epoch, ran }: Held): Buffer {
  const bytes = Buffer.alloc(8)
  bytes.writeUInt32LE(epoch, 0)
  bytes.writeUInt32LE(ran, 4)
  return bytes
}

function decoded(bytes: Buffer): Held {
  return { epoch: bytes.readUInt32LE(0), ran: bytes.readUInt32LE(4) }
}
