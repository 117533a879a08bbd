import { setTimeout as sleep } from 'node:timers/promises'
import type { Logger } from 'pino'
import { hypervisorOverheadBytes } from '../hypervisor/driver.ts'
import type { Keeper } from '../memory/keeper.ts'
import { spaceProblem } from '../storage/space.ts'
import type { DiskImage, Store } from '../storage/store.ts'
import { type ListedTemplate, type Template, templateId } from '../storage/templates.ts'
import type { MachineRow, Rows } from './rows.ts'
import type { Slots } from './slots.ts'
import { type GuestNetwork, isOwnImage } from './specification.ts'
import { makeTemplate, removeHalfMade, type TemplateWorld, templateKey } from './templating.ts'

/**
 * The templates of this server: which new machine goes on from which, when one is made, and how long it is kept.
 *
 *     none --a machine that was booted from its image is ready--> wanted
 *     wanted --nobody comes up or wakes, and there is memory and space to spare--> being made (templating.ts) --> kept
 *     wanted, being made --memory runs short, it fails, this vmhost ends--> none, until another machine is booted
 *     kept --unlike what machines start with now | not asked for in `keptMs` | too many, too large, no space--> none
 *
 * It is never made of a machine: what somebody has signed in to has secrets. And nobody ever waits for one: without a
 * template, and when going on from one fails, a machine boots from its disk, which is only slower, and the log says why.
 */
export class Templates {
  readonly #options: TemplatesOptions
  readonly #wanted = new Map<string, Wish>()
  /** how often it came to nothing since this vmhost started, by id */
  readonly #failures = new Map<string, number>()
  /** somebody uses a machine of this server */
  #isAtWork = false
  #making: Promise<void> | undefined

  constructor(options: TemplatesOptions) {
    this.#options = options
  }

  /** Before the first machine is started. */
  async start(): Promise<void> {
    await removeHalfMade(this.#options)
    await this.sweep()
  }

  /** @returns what a machine that has no disk yet can go on from */
  async find(image: DiskImage, row: Pick<MachineRow, 'cpus' | 'memoryBytes' | 'diskBytes'>) {
    try {
      const template = await this.#options.files.find(await this.#key(image, row))
      return template && template.diskBytes <= row.diskBytes ? template : undefined
    } catch (error) {
      this.#options.log.warn({ err: error, image: image.name }, 'no template')
      return undefined
    }
  }

  /** A machine was booted from this image, and another may come. */
  want(image: DiskImage, { cpus, memoryBytes }: Pick<MachineRow, 'cpus' | 'memoryBytes'>): void {
    if (this.#options.signal.aborted || this.#wanted.size >= wantedMost) return
    this.#wanted.set([image.hash, cpus, memoryBytes].join(), { image, cpus, memoryBytes })
    this.#making ??= this.#makeAll().finally(() => {
      this.#making = undefined
    })
  }

  /** What was made of it did not come up. */
  async distrust({ id }: Pick<Template, 'id'>): Promise<void> {
    this.#failed(id)
    await this.#options.files.remove(id)
  }

  /** Removes those that no machine will go on from any more, and what is too much. */
  async sweep(): Promise<void> {
    const { files, store, driver } = this.#options
    const [listed, space, images, current] = await Promise.all([
      files.list(),
      store.space(),
      store.images(),
      store.currentBoot().catch(() => undefined),
    ])
    // Set-up is not to be seen now, which does not mean that what it made is gone.
    if (!current || images.length === 0) return
    const isCurrent = ({ record }: ListedTemplate) =>
      record?.bootSet === current.hash &&
      record.stateVersion === driver.stateVersion &&
      (!isOwnImage(record.imageName) || images.some(({ hash }) => hash === record.imageHash))
    const most = { count: countMost, bytes: Math.min(bytesMost, space.totalBytes * bytesShare) }
    const since = Date.now() - keptMs
    for (const one of listed) {
      const fits = isCurrent(one) && one.usedAt.getTime() >= since && most.count >= 1 && most.bytes >= one.bytes
      if (fits && spaceProblem(space) === undefined) {
        most.count -= 1
        most.bytes -= one.bytes
      } else await files.remove(one.id)
    }
  }

  /** Its space is needed. @returns whether there was anything to give */
  async giveUp(): Promise<boolean> {
    const { files, log } = this.#options
    const listed = await files.list()
    for (const { id } of listed) await files.remove(id)
    if (listed.length > 0) log.warn({ templates: listed.length }, 'gave up the templates: their space is needed')
    return listed.length > 0
  }

  /** Once the signal has been given. Resolves when nothing is left of one that was being made. */
  async close(): Promise<void> {
    await this.#making
  }

  async #makeAll(): Promise<void> {
    const { signal, log } = this.#options
    for (const [name, wish] of this.#wanted) {
      await this.#make(wish).catch((error: unknown) => {
        if (!signal.aborted) log.warn({ err: error, image: wish.image.name }, 'a template was not made')
      })
      this.#wanted.delete(name)
    }
  }

  async #make(wish: Wish): Promise<void> {
    const { files, store, signal, spare } = this.#options
    await this.#untilQuiet()
    const bootSet = await store.currentBoot()
    const key = await this.#key(wish.image, wish)
    if ((this.#failures.get(templateId(key)) ?? 0) >= failuresMost || (await files.find(key))) return
    const problem = spaceProblem(await store.space())
    if (problem !== undefined) throw new Error(problem)
    if (!(await spare(wish.memoryBytes + hypervisorOverheadBytes))) throw new ShortOfMemoryError()
    const disk = wish.image.path ?? (await store.importImage(wish.image))
    const short = new AbortController()
    const look = async () => {
      await this.#lookWhoWorks()
      if (!(await spare(0))) short.abort(new ShortOfMemoryError())
    }
    const looks = setInterval(() => void look().catch(() => {}), lookEveryMs).unref()
    try {
      const { name, loginUser } = wish.image
      const image = { name, loginUser, disk }
      const world = { ...this.#options, isAwaited: () => this.#isAwaited() }
      await makeTemplate(key, image, bootSet, world, AbortSignal.any([signal, short.signal]))
    } catch (error) {
      if (!signal.aborted && !short.signal.aborted) this.#failed(templateId(key))
      throw error
    } finally {
      clearInterval(looks)
    }
    await this.sweep()
  }

  /** Whoever asked for a machine is about to sign in and work, and others may be coming up. */
  async #untilQuiet(): Promise<void> {
    const { signal } = this.#options
    do {
      await sleep(lookEveryMs, undefined, { signal, ref: false })
      await this.#lookWhoWorks()
    } while (this.#isAwaited())
  }

  /** Emulated, a guest that boots takes the processors from whoever works in another. */
  async #lookWhoWorks(): Promise<void> {
    const { driver, rows } = this.#options
    if (driver.accelerator === 'tcg') this.#isAtWork = await rows.anyUsedWithin(atWorkMs)
  }

  #isAwaited(): boolean {
    const { slots, wakes, driver } = this.#options
    const sinceMs = this.#options.quietMs ?? quietMs[driver.accelerator]
    return this.#isAtWork || slots.busyWithin(sinceMs) || wakes.busyWithin(sinceMs)
  }

  async #key(image: DiskImage, { cpus, memoryBytes }: Pick<MachineRow, 'cpus' | 'memoryBytes'>) {
    const bootSet = await this.#options.store.currentBoot()
    return templateKey({ image, cpus, memoryBytes }, bootSet, this.#options)
  }

  #failed(id: string): void {
    this.#failures.set(id, (this.#failures.get(id) ?? 0) + 1)
  }
}

export type TemplatesOptions = Omit<TemplateWorld, 'isAwaited'> & {
  readonly store: Pick<Store, 'currentBoot' | 'images' | 'importImage' | 'space'>
  readonly slots: Pick<Slots, 'busyWithin'>
  readonly wakes: Pick<Slots, 'busyWithin'>
  readonly rows: Pick<Rows, 'anyUsedWithin'>
  readonly spare: Keeper['spare']
  readonly guest: GuestNetwork
  /** what a single machine may have */
  readonly memoryBytes: number
  readonly log: Pick<Logger, 'info' | 'warn' | 'debug'>
  readonly signal: AbortSignal
  /** tests: shorter */
  readonly quietMs?: number
}

type Wish = { readonly image: DiskImage; readonly cpus: number; readonly memoryBytes: number }

class ShortOfMemoryError extends Error {
  override readonly name = 'ShortOfMemoryError'
  constructor() {
    super('the server has no memory to spare')
  }
}

/** Since the last machine came up: emulated, whoever has it signs in for seconds. */
const quietMs = { kvm: 2_000, tcg: 8_000 }
/** A gateway says each 15 s that a machine is used. */
const atWorkMs = 20_000
const lookEveryMs = 1_000
const dayMs = 86_400_000
/** As images of registries that no machine is made of. */
const keptMs = 7 * dayMs
const countMost = 16
const bytesMost = 8 * 2 ** 30
/** Of the store. */
const bytesShare = 0.05
const wantedMost = 16
/** What fails for a reason of its own fails again. */
const failuresMost = 2
