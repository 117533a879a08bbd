/** Something that Cloud Hypervisor told on its event monitor. @see docs, `--event-monitor` */
export type MonitorEvent = {
  /** `vmm`, `vm`, `guest`, `virtio-device` */
  readonly source: string
  readonly event: string
  readonly properties: Readonly<Record<string, unknown>>
}

/**
 * Cuts the monitor's stream into events: pretty-printed JSON documents, a blank line after each. It drops what finds no
 * room in the FIFO, an event or the blank line after it, so an event is looked for by its own shape: from a brace at the
 * beginning of a line, or behind the event before, over indented lines to a brace that is not.
 */
export class MonitorReader {
  #held = ''

  /** @returns the events that `text` completes, in order */
  push(text: string): MonitorEvent[] {
    this.#held += text
    const events: MonitorEvent[] = []
    let taken = 0
    for (const { 0: found, index } of this.#held.matchAll(document)) {
      taken = index + found.length
      const event = parse(found)
      if (event) events.push(event)
    }
    this.#held = this.#held.slice(taken).slice(-heldMostCharacters)
    return events
  }
}

const document = /(?<=^|\})\{\n(?: {2}.*\n)+\}/gm
/** An event has some 150 characters. */
const heldMostCharacters = 16 * 1024

function parse(text: string): MonitorEvent | undefined {
  try {
    const { source, event, properties } = JSON.parse(text)
    if (typeof source !== 'string' || typeof event !== 'string') return undefined
    return { source, event, properties: properties ?? {} }
  } catch {
    return undefined
  }
}
