import { chmodSync, mkdirSync, mkdtempSync, symlinkSync, writeFileSync } from 'node:fs'
import { rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Logger } from 'pino'
import { makeTinyGuest } from '../../hypervisor/tiny-guest.ts'
import { openStore, type Store } from '../../storage/store.ts'
import { loopDeviceOf, prepareVolume, unmountVolume, type Volume } from '../../storage/volume.ts'

const MiB = 2 ** 20

/** A volume of its own, and what set-up makes: an image `minimal` of 8 MiB, and a kernel of a few bytes that idles. */
export type TinyStore = AsyncDisposable & {
  readonly home: string
  readonly volume: Volume
  readonly store: Store
}

/** Disposing of it waits for what still holds the volume; no hypervisor may. */
export async function makeTinyStore(log: Logger): Promise<TinyStore> {
  const home = mkdtempSync(join(tmpdir(), 'berth-tiny-store-'))
  chmodSync(home, 0o711)
  const artifacts = join(home, 'artifacts')
  const hash = '0123456789abcdef'
  const image = join(artifacts, 'images', `minimal-${hash}`)
  mkdirSync(image, { recursive: true })
  writeFileSync(join(image, 'root.raw'), Buffer.alloc(8 * MiB, 1))
  const description = { name: 'minimal', hash, sizeBytes: 8 * MiB, loginUser: 'dev', init: true, description: '' }
  writeFileSync(join(image, 'image.json'), JSON.stringify(description))
  symlinkSync(`minimal-${hash}`, join(artifacts, 'images', 'minimal'))
  const boot = join(artifacts, 'boot', 'aaaaaaaaaaaaaaaa')
  mkdirSync(boot, { recursive: true })
  await makeTinyGuest(join(boot, 'vmlinuz'), 'idle')
  for (const name of ['initrd', 'tools.erofs', 'boot.json']) writeFileSync(join(boot, name), Buffer.alloc(4096))
  symlinkSync('aaaaaaaaaaaaaaaa', join(artifacts, 'boot', 'current'))
  const volume = await prepareVolume({ dataDirectory: home, log, sizeBytes: 800 * MiB, forceVolume: true })
  const store = await openStore(volume, artifacts)
  return {
    home,
    volume,
    store,
    async [Symbol.asyncDispose]() {
      // What was killed a moment ago still holds it.
      for (let left = 600; ; left--) {
        const problem = await unmountVolume(volume).then(() => undefined, String)
        if (problem === undefined) break
        if (left === 0) throw new Error(problem)
        await sleep(100)
      }
      // The device goes with its last mount, and a mount namespace that was made meanwhile holds one, perhaps for long.
      for (let left = 50; left > 0 && (await loopDeviceOf(volume.backingFile ?? '')); left--) await sleep(100)
      await rm(home, { recursive: true })
    },
  }
}
