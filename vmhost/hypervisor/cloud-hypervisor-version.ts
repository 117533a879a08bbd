import { execFile } from 'node:child_process'
import { constants } from 'node:fs'
import { access } from 'node:fs/promises'
import { isAbsolute, join } from 'node:path'
import { promisify } from 'node:util'
import { HypervisorError } from './driver.ts'

const execFileAsync = promisify(execFile)

/** What the releases that are known do differently from each other. */
export type Abilities = {
  /** `--no-shutdown`: the process outlives a guest that switched itself off, so that the reason can be asked for */
  readonly outlivesGuest: boolean
  /** console output that finds no room is dropped; before, it ended the console's thread, so that the writing must wait */
  readonly dropsConsole: boolean
  /** a saved guest's memory has holes where the guest's has, and a guest that is restored holds no more of the server's */
  readonly savesSparsely: boolean
  /** processors are added to a guest that runs; before, one that was saved meanwhile could hang for good (#7990, #8092) */
  readonly addsProcessors: boolean
  /** why this release is better not used; undefined: nothing is known against it */
  readonly objection?: string
}

const releases: ReadonlyMap<number, Abilities> = new Map([
  [50, { outlivesGuest: false, dropsConsole: false, savesSparsely: false, addsProcessors: false }],
  [51, { outlivesGuest: false, dropsConsole: false, savesSparsely: false, addsProcessors: false }],
  [52, { outlivesGuest: true, dropsConsole: true, savesSparsely: true, addsProcessors: true }],
  [53, { outlivesGuest: true, dropsConsole: true, savesSparsely: true, addsProcessors: true }],
])
const objection = 'a guest can reach into it through its disk (CVE-2026-45782), which v51.2 and v52 have mended'

/**
 * @param text as it says its version anywhere: `cloud-hypervisor v53.0`, `53.0.0`, `v51.2`
 * @returns the release, e.g. `v53.0`; the text itself where there is none in it
 */
export function releaseName(text: string): string {
  const [, major, minor, patch] = /(?:^|\s|\bv)(\d+)\.(\d+)(?:\.(\d+))?/.exec(text) ?? []
  if (major === undefined) return text.trim().slice(0, 40)
  return `v${major}.${minor}${patch === undefined || patch === '0' ? '' : `.${patch}`}`
}

/**
 * What a release can do.
 * @param name from `releaseName`
 * @throws HypervisorError for one that is not known: its interface may have changed, and every guest hangs on it
 */
export function abilitiesOf(name: string): Abilities {
  const [, major, minor] = /^v(\d+)\.(\d+)/.exec(name) ?? []
  const known = releases.get(Number(major))
  if (!known) {
    const list = [...releases.keys()].map((release) => `v${release}`).join(', ')
    throw new HypervisorError('hypervisor.refused', `Cloud Hypervisor ${name} is not known; known are ${list}`)
  }
  const release = Number(major) * 100 + Number(minor)
  if (release < 50_01) {
    const why = 'takes what a guest writes to the beginning of its disk for a disk format (GHSA-jmr4-g2hv-mjj6)'
    throw new HypervisorError('hypervisor.refused', `Cloud Hypervisor ${name} ${why}; v50.1 and later do not`)
  }
  return release < 51_02 ? { ...known, objection } : known
}

/**
 * Where Cloud Hypervisor is.
 * @param named CLOUD_HYPERVISOR, an absolute path; without it the usual names are looked for in `searchPath`
 * @returns absolute path; undefined when there is none
 * @throws HypervisorError when there is none where it was said to be
 */
export async function findCloudHypervisor(named: string | undefined, searchPath: string): Promise<string | undefined> {
  if (named !== undefined) {
    if (await isExecutable(named)) return named
    throw new HypervisorError('hypervisor.start', `CLOUD_HYPERVISOR names ${named}, which is no program`)
  }
  const folders = searchPath.split(':').filter(isAbsolute)
  for (const path of folders.flatMap((folder) => names.map((name) => join(folder, name)))) {
    if (await isExecutable(path)) return path
  }
  return undefined
}

const names = ['cloud-hypervisor', 'cloud-hypervisor-static']

/** @returns the release by the program's own word; only what `vmm.ping` says is relied on. @throws HypervisorError */
export async function programVersion(binary: string): Promise<string> {
  const { stdout } = await execFileAsync(binary, ['--version'], { timeout: 10_000 }).catch((cause: unknown) => {
    throw new HypervisorError('hypervisor.start', `${binary} cannot be run`, { cause })
  })
  return releaseName(stdout)
}

function isExecutable(path: string): Promise<boolean> {
  return access(path, constants.X_OK).then(
    () => true,
    () => false,
  )
}
