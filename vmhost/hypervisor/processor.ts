import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { mkdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { replaceFile } from '../storage/durable.ts'

/**
 * What a guest that was saved under KVM needs of whoever restores it: a processor of the same model, with all the
 * features that the kernel of the server named then. Features that came since, as a newer kernel brings them, are of no
 * consequence: a guest asks for them once, when it boots. One that is missing may be in use in the guest this very
 * moment, so its memory waits until the feature is back, with the kernel or the microcode before.
 */
export type Processor = {
  /** of all that follows: what a saved guest names its processor by */
  readonly kind: string
  readonly model: string
  readonly features: readonly string[]
}

/** @param cpuinfo proc_cpuinfo(5), of which the first processor is taken */
export function readProcessor(cpuinfo = readFileSync('/proc/cpuinfo', 'latin1')): Processor {
  const lines = cpuinfo.split('\n\n')[0]?.split('\n') ?? []
  const what = lines.filter((line) => /^(model name|flags)\s/.test(line)).join('\n')
  const value = (name: string) => new RegExp(`^${name}\\s*: (.*)$`, 'm').exec(what)?.[1]?.trim() ?? ''
  return {
    kind: createHash('sha256').update(what).digest('hex').slice(0, 12),
    model: value('model name'),
    features: value('flags').split(' '),
  }
}

export function processorKind(): string {
  return readProcessor().kind
}

/** The processors that guests were saved under here, by their kind: what is not written down cannot be compared later. */
export class Processors {
  readonly #folder: string
  readonly #now: Processor

  /**
   * @param folder within the machines' store, made when missing
   * @param now tests: another one than this server has
   */
  constructor(folder: string, now = readProcessor()) {
    this.#folder = folder
    this.#now = now
  }

  /** Writes down the one that guests are saved under from now on; nothing when that was done before. */
  async keep(): Promise<void> {
    if (await this.#find(this.#now.kind)) return
    await mkdir(this.#folder, { recursive: true })
    await replaceFile(join(this.#folder, `${this.#now.kind}.json`), JSON.stringify(this.#now))
  }

  /** @returns why a guest that was saved under a processor of this kind cannot go on here, after `Its memory was saved`; undefined: it can */
  async obstacle(kind: string): Promise<string | undefined> {
    if (kind === this.#now.kind) return undefined
    const then = await this.#find(kind)
    if (!then || then.model !== this.#now.model) return `on another processor than its server has now`
    const missing = then.features.filter((name) => !this.#now.features.includes(name))
    if (missing.length === 0) return undefined
    const list = missing.slice(0, namedMost).join(', ') + (missing.length > namedMost ? ', ..' : '')
    return `with features of the processor that its server, or its server's kernel, does not have now: ${list}`
  }

  async #find(kind: string): Promise<Processor | undefined> {
    if (!/^[0-9a-f]{12}$/.test(kind)) return undefined
    try {
      return JSON.parse(await readFile(join(this.#folder, `${kind}.json`), 'utf8'))
    } catch {
      return undefined
    }
  }
}

const namedMost = 5

/** Where nothing is written down. */
export const noProcessors: Pick<Processors, 'obstacle'> = {
  obstacle: (kind) => new Processors('/nonexistent').obstacle(kind),
}
