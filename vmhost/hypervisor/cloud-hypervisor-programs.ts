import { constants } from 'node:fs'
import { access, chmod, copyFile, mkdir, readdir, readFile, rename } from 'node:fs/promises'
import { join } from 'node:path'

/**
 * Copies of the programs that machines were started with, one of each release. A saved guest is read by the very
 * release that wrote it and by no other, so an update of the operator's program must not take the old one away; and one
 * in the machines' store can be started by their users wherever the store lies. A copy takes a few MiB and stays.
 */
export class CloudHypervisorPrograms {
  readonly #folder: string

  /** @param folder within the machines' store, made when missing */
  constructor(folder: string) {
    this.#folder = folder
  }

  /**
   * @param binary the operator's
   * @param version as it says it, e.g. `v53.0`
   * @returns path of the copy
   */
  async keep(binary: string, version: string): Promise<string> {
    const path = this.#path(version)
    if (path === undefined) throw new Error(`${version} is no version`)
    const [wanted, there] = await Promise.all([readFile(binary), readFile(path).catch(() => undefined)])
    if (there?.equals(wanted)) return path
    await mkdir(join(path, '..'), { recursive: true })
    for (const folder of [this.#folder, join(path, '..')]) await chmod(folder, 0o755)
    const copy = `${path}.${process.pid}`
    await copyFile(binary, copy)
    await chmod(copy, 0o755)
    // Those that run the one before keep it.
    await rename(copy, path)
    return path
  }

  /** @returns path of the program of this release; undefined when there is none here */
  async find(version: string): Promise<string | undefined> {
    const path = this.#path(version)
    if (path === undefined) return undefined
    return access(path, constants.X_OK).then(
      () => path,
      () => undefined,
    )
  }

  /** The newest that is here, e.g. for machines that still run under one. */
  async newest(): Promise<{ binary: string; version: string } | undefined> {
    const order = new Intl.Collator('en', { numeric: true })
    const versions = (await readdir(this.#folder).catch(() => [])).sort(order.compare).reverse()
    for (const version of versions) {
      const binary = await this.find(version)
      if (binary !== undefined) return { binary, version }
    }
    return undefined
  }

  #path(version: string): string | undefined {
    return /^v\d+(\.[0-9A-Za-z-]+)*$/.test(version) ? join(this.#folder, version, 'cloud-hypervisor') : undefined
  }
}
