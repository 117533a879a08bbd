import { execFileSync } from 'node:child_process'
import { chmodSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { findProcesses } from '../../hypervisor/process.ts'
import type { Space } from '../../storage/space.ts'
import { type ImageProgress, type Images, type OciImage, openImages, workerUid } from '../images.ts'

/** A server's images in a folder of the test's own, which has as much space as the test says. */
export class ImageLab implements Disposable {
  readonly home = mkdtempSync(join(tmpdir(), 'berth-images-'))
  freeBytes = 2 ** 40
  #images: Images | undefined

  /** @param hosts registries that the operator has listed */
  static async make(hosts: readonly string[]): Promise<ImageLab> {
    const lab = new ImageLab()
    // The worker has to get through to its folder.
    chmodSync(lab.home, 0o755)
    lab.list(hosts)
    await lab.open()
    return lab
  }

  /** As a server that starts. */
  async open(): Promise<Images> {
    const space = async (): Promise<Space> => ({
      ...{ totalBytes: 2 ** 40, freeBytes: this.freeBytes },
      ...{ volumeFreeBytes: this.freeBytes, underlyingFreeBytes: undefined, reserveBytes: 2 ** 20 },
    })
    const registriesPath = join(this.home, 'registries.json')
    const log = { info: () => {}, warn: () => {} }
    this.#images = await openImages({ directory: this.home, registriesPath, space, log })
    return this.#images
  }

  get images(): Images {
    if (!this.#images) throw new Error('not opened')
    return this.#images
  }

  /** The operator's file. */
  list(hosts: readonly string[], logins: Record<string, { username: string; password: string }> = {}): void {
    const auths = Object.fromEntries(hosts.map((host) => [host, logins[host] ?? {}]))
    writeFileSync(join(this.home, 'registries.json'), JSON.stringify({ auths }))
  }

  ensure(
    reference: string,
    wanted: { accountId?: number; diskBytes?: number; signal?: AbortSignal; progress?: ImageProgress[] } = {},
  ): Promise<OciImage> {
    return this.images.ensure(reference, {
      accountId: wanted.accountId ?? 1,
      diskBytes: wanted.diskBytes ?? 2 ** 40,
      signal: wanted.signal ?? new AbortController().signal,
      onProgress: (progress) => wanted.progress?.push(progress),
    })
  }

  /** Looks into the disk as a machine's kernel would. */
  inside<T>(image: OciImage, look: (root: string) => T): T {
    const root = join(this.home, 'mounted')
    mkdirSync(root)
    execFileSync('mount', ['-o', 'loop,ro,noload', image.path, root])
    try {
      return look(root)
    } finally {
      execFileSync('umount', [root])
      rmSync(root, { recursive: true })
    }
  }

  workers() {
    return findProcesses(workerUid, join(this.home, 'oci/blobs'))
  }

  blobs(): string[] {
    return readdirSync(join(this.home, 'oci/blobs'))
  }

  /** What is half made. */
  work(): string[] {
    return readdirSync(join(this.home, 'oci/work'))
  }

  [Symbol.dispose](): void {
    rmSync(this.home, { recursive: true })
  }
}
