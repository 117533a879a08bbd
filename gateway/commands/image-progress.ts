import type { ImageStep } from '../../migrations/schema.ts'
import type { Context } from './command.ts'
import { sayBytes } from './values.ts'

const LOOK_MS = 500

/** A person who waits for an image is told how much of it is there. */
export function watchImage({ app, progress }: Context, machineId: number) {
  let name: string | undefined
  const timer = setInterval(async () => {
    if (name === undefined || progress.isSilent) return
    const rows = await app.sql<ImagePull[]>`
      select step, done_bytes as "doneBytes", total_bytes as "totalBytes", layers_done as "layersDone", layers
      from image_pulls where machine_id = ${machineId}`.catch(() => [])
    // The wait may have come to its end meanwhile.
    const [pull] = rows
    if (pull && name !== undefined) progress.show(`${name}: ${pullInWords(pull)}`, partOf(pull))
  }, LOOK_MS)
  timer.unref()
  return {
    /** @param machine its name while its image is fetched, else undefined */
    show(machine: string | undefined) {
      name = machine
    },
    [Symbol.dispose]: () => {
      name = undefined
      clearInterval(timer)
    },
  }
}

type ImagePull = {
  step: ImageStep
  doneBytes: number | null
  totalBytes: number | null
  layersDone: number | null
  layers: number | null
}

function partOf({ doneBytes, totalBytes }: ImagePull) {
  return doneBytes === null || totalBytes === null ? undefined : { doneBytes, totalBytes }
}

/** How far a server is with an image, as a person reads it. */
export function pullInWords({ step, doneBytes, totalBytes, layersDone, layers }: ImagePull): string {
  const words = {
    waiting: 'waiting for other images',
    resolving: 'looking up its image',
    fetching: 'fetching its image',
    reading: 'reading its image',
    unpacking: 'unpacking its image',
    making: 'making the disk of its image',
  }[step]
  if (doneBytes === null || totalBytes === null) return words
  if (step !== 'fetching') return `${words}, ${Math.floor((doneBytes / Math.max(1, totalBytes)) * 100)} %`
  return `${words}, ${sayBytes(doneBytes)} of ${sayBytes(totalBytes)}, ${layersDone ?? 0} of ${layers ?? 0} layers`
}
