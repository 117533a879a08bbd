import type { Images } from '../images/images.ts'
import { unlessShort } from '../storage/errors.ts'
import type { DiskImage, Store } from '../storage/store.ts'
import type { MachineRow, Observation, Rows } from './rows.ts'
import { isOwnImage, MachineError } from './specification.ts'

/** What is told of an image on its way, at most; a person reads it. */
const tellEveryMs = 500

/** Hashes of the images that a machine here was made of. */
export async function imagesInUse(store: Pick<Store, 'listMachines' | 'findMachine'>): Promise<Set<string>> {
  const machines = await Promise.all(
    (await store.listMachines()).map((id) => store.findMachine(id).catch(unlessShort(() => undefined))),
  )
  return new Set(machines.flatMap((files) => (files ? [files.record.imageHash] : [])))
}

export type ImageWorld = {
  readonly store: Pick<Store, 'images'>
  readonly images: Pick<Images, 'ensure'>
  readonly rows: Pick<Rows, 'tellPull' | 'endPull'>
}

/**
 * The image that a machine's disk is to be made from: one that this server has by that name, or one of a registry, which
 * is fetched first, and the database hears how far it is.
 * @throws ImageError, StorageError, MachineError; the signal's reason
 */
export async function obtainImage(
  row: MachineRow,
  world: ImageWorld,
  signal: AbortSignal,
  observe: (seen: Observation) => void,
): Promise<DiskImage> {
  const own = (await world.store.images()).find(({ name }) => name === row.image)
  if (own) return own
  // Set-up's names have nothing to do with a registry, whichever of them are there at the moment.
  if (isOwnImage(row.image)) throw new MachineError(`There is no image called ${row.image} on this server`)
  observe({ observedStage: 'image', observedReason: null })
  let toldAt = Number.NEGATIVE_INFINITY
  let step = ''
  let telling: Promise<void> = Promise.resolve()
  try {
    return await world.images.ensure(row.image, {
      accountId: row.accountId,
      diskBytes: row.diskBytes,
      signal,
      onProgress: (progress) => {
        const now = performance.now()
        if (progress.step === step && now - toldAt < tellEveryMs) return
        toldAt = now
        step = progress.step
        // Nobody misses one that is lost.
        telling = telling.then(() => world.rows.tellPull(row.id, progress)).catch(() => {})
      },
    })
  } finally {
    void telling.then(() => world.rows.endPull(row.id)).catch(() => {})
  }
}
