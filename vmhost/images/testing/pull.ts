import { openImages } from '../images.ts'

/** A server that fetches one image, to be killed while it does: node pull.ts DIRECTORY REGISTRIES REFERENCE */
const [directory = '', registriesPath = '', reference = ''] = process.argv.slice(2)
const space = async () => ({
  ...{ totalBytes: 2 ** 40, freeBytes: 2 ** 40, volumeFreeBytes: 2 ** 40, underlyingFreeBytes: undefined },
  reserveBytes: 0,
})
const images = await openImages({ directory, registriesPath, space, log: { info: () => {}, warn: () => {} } })
const { signal } = new AbortController()
await images.ensure(reference, {
  accountId: 1,
  diskBytes: 2 ** 40,
  signal,
  onProgress: (progress) => process.stdout.write(`${JSON.stringify(progress)}\n`),
})
