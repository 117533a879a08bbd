import type { Logger } from 'pino'
import type { Images } from '../images/images.ts'
import { spaceProblem } from '../storage/space.ts'
import type { Store } from '../storage/store.ts'
import { imagesInUse } from './image.ts'
import type { Rows } from './rows.ts'
import type { Templates } from './templates.ts'

/**
 * What a server gives up when its store is full, a step at each look: what can be fetched again, then what can be made
 * again, and a machine that somebody may want back from the trash only when there is neither.
 */
export async function makeSpace({ store, images, templates, rows, log }: SpaceMaking): Promise<void> {
  if (spaceProblem(await store.space()) === undefined) return
  if (await images.giveUp(await imagesInUse(store))) {
    log.warn('gave up images and layers that can be fetched again: their space is needed')
    return
  }
  if (await templates.giveUp()) return
  const machineId = await rows.sacrificeTrash()
  if (machineId !== undefined) log.warn({ machine: machineId }, 'gave up a trashed machine: its space is needed')
}

export type SpaceMaking = {
  readonly store: Pick<Store, 'space' | 'listMachines' | 'findMachine'>
  readonly images: Pick<Images, 'giveUp'>
  readonly templates: Pick<Templates, 'giveUp'>
  readonly rows: Pick<Rows, 'sacrificeTrash'>
  readonly log: Pick<Logger, 'warn'>
}
