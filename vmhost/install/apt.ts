import { mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { CommandError, type CommandOptions, run } from './command.ts'
import { megabytes, type Stage } from './progress.ts'

/** The Debian release that machines run: their kernel, their sshd, their images. The host's own may differ. */
export const GUEST_SUITE = 'trixie'

/**
 * apt for the guest's Debian release, with configuration, lists and cache of its own: the host's packages and
 * sources are neither used nor touched, only its proxies and its choice of mirror are.
 */
export type GuestApt = {
  /** sources.list lines, as given to mmdebstrap too. */
  sources: string
  /** For `-c`, which is read after the host's own configuration and can clear what that adds. */
  configPath: string
  listsPath: string
  archivesPath: string
  keyringPath: string
  /** The mirrors that machines are given: public ones, because the host's may not be reachable from them. */
  machineMirrors: { main: string; security: string }
}

type Mirrors = { main: string; security: string; keyring: string }

/**
 * Prepares `directory` and fetches the package lists.
 * @throws CommandError when no mirror answers
 */
export async function openGuestApt(directory: string, stage: Stage): Promise<GuestApt> {
  for (const part of ['state/lists/partial', 'cache/archives/partial'])
    await mkdir(join(directory, part), { recursive: true })
  const mirrors = await findMirrors(directory)
  const signed = `[signed-by=${mirrors.keyring}]`
  const suites = [
    ['main', `${mirrors.main} ${GUEST_SUITE} main`],
    ['main', `${mirrors.main} ${GUEST_SUITE}-updates main`],
    ['security', `${mirrors.security} ${GUEST_SUITE}-security main`],
  ] as const
  const sources = suites.map(([, suite]) => `deb ${signed} ${suite}`).join('\n')
  // Sources for the one package that is compiled here (sshd.ts); its index is a third of the download.
  const compiled = suites.map(([, suite]) => `deb-src ${signed} ${suite}`).join('\n')
  await writeFile(join(directory, 'sources.list'), `${sources}\n${compiled}\n`)
  await writeFile(join(directory, 'status'), '')
  await writeFile(
    join(directory, 'apt.conf'),
    [
      `Dir::State "${directory}/state";`,
      `Dir::State::status "${directory}/status";`,
      `Dir::Cache "${directory}/cache";`,
      `Dir::Etc::sourcelist "${directory}/sources.list";`,
      'Dir::Etc::sourceparts "/dev/null";',
      'Dir::Etc::preferences "/dev/null";',
      'Dir::Etc::preferencesparts "/dev/null";',
      'Acquire::Languages "none";',
      'Acquire::Retries "3";',
      // Icons and such that desktop packages configure apt to fetch.
      'Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";',
      'Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";',
      'APT::Sandbox::User "root";',
      'APT::Install-Recommends "false";',
      'APT::Get::Assume-Yes "true";',
      // Hooks of the host's packages; in container images one of them empties the cache.
      '#clear DPkg::Post-Invoke;',
      '#clear DPkg::Pre-Install-Pkgs;',
      '#clear APT::Update::Post-Invoke;',
      '#clear APT::Update::Post-Invoke-Success;',
      '',
    ].join('\n'),
  )
  const apt: GuestApt = {
    sources,
    configPath: join(directory, 'apt.conf'),
    listsPath: join(directory, 'state/lists'),
    archivesPath: join(directory, 'cache/archives'),
    keyringPath: mirrors.keyring,
    machineMirrors: await defaultMirrors().catch(() => mirrors),
  }
  stage.detail('reading the package lists')
  // Without the option apt-get update ends with 0 when a mirror does not answer, and old or no lists are used.
  await runApt(apt, 'apt-get', ['update', '-o', 'APT::Update::Error-Mode=any'])
  return apt
}

/** Runs an apt tool with this configuration. */
export function runApt(
  apt: GuestApt,
  tool: 'apt-get' | 'apt-cache',
  parameters: readonly string[],
  options: CommandOptions = {},
): Promise<string> {
  return run(tool, ['-c', apt.configPath, ...parameters], options)
}

/** @returns the version that would be installed, for naming what was built */
export async function candidateVersion(apt: GuestApt, name: string): Promise<string> {
  const policy = await runApt(apt, 'apt-cache', ['policy', name])
  const version = /^ {2}Candidate: (\S+)$/m.exec(policy)?.[1]
  if (version === undefined || version === '(none)')
    throw new CommandError(`no package ${name} in Debian ${GUEST_SUITE}`)
  return version
}

export type Closure = {
  /** Package file names with their versions, sorted: what an installation on an empty system would consist of. */
  files: string[]
  totalBytes: number
}

/** @param names package names or apt's own patterns */
export async function closureOf(apt: GuestApt, names: readonly string[]): Promise<Closure> {
  const uris = await runApt(apt, 'apt-get', ['install', '--print-uris', '-qq', ...names])
  const found = [...uris.matchAll(/^'[^']+' (\S+) (\d+)/gm)]
  return {
    files: found.map(([, file = '']) => file).sort(),
    totalBytes: found.reduce((bytes, [, , size]) => bytes + Number(size), 0),
  }
}

/** Downloads all that installing `names` on an empty system takes, so that the network is busy while processors are. */
export async function prefetch(apt: GuestApt, names: readonly string[], stage: Stage): Promise<void> {
  const { totalBytes } = await closureOf(apt, names)
  const timer = setInterval(() => {
    void folderBytes(apt.archivesPath).then((bytes) => stage.detail(`${megabytes(bytes)} of ${megabytes(totalBytes)}`))
  }, 500)
  try {
    await runApt(apt, 'apt-get', ['install', '--download-only', '-qq', ...names])
  } finally {
    clearInterval(timer)
  }
}

async function folderBytes(path: string): Promise<number> {
  let bytes = 0
  for (const folder of [path, join(path, 'partial')]) {
    for (const name of await readdir(folder).catch(() => [])) {
      bytes += (await stat(join(folder, name)).catch(() => undefined))?.size ?? 0
    }
  }
  return bytes
}

/**
 * The host's own Debian mirror where it has one, because it is near and reachable; on Ubuntu and elsewhere the one
 * that mmdebstrap would use by itself.
 */
async function findMirrors(directory: string): Promise<Mirrors> {
  const keyring = await findKeyring(directory)
  const host = await hostMirrors()
  if (host) return { ...host, keyring }
  return { ...(await defaultMirrors()), keyring }
}

async function hostMirrors(): Promise<Omit<Mirrors, 'keyring'> | undefined> {
  const targets = await run('apt-get', [
    'indextargets',
    '--format',
    '$(REPO_URI) $(RELEASE) $(COMPONENT) $(SIGNED_BY)',
    'Created-By: Packages',
  ]).catch(() => '')
  const found: { main?: string; security?: string } = {}
  for (const line of targets.split('\n')) {
    const [uri = '', release = ''] = line.split(' ')
    if (!/^(https?|mirror\+https?):\/\//.test(uri)) continue
    if (/\/debian\/$/.test(uri) && !/security/.test(release)) found.main ??= uri
    if (/\/debian-security\/$/.test(uri)) found.security ??= uri
  }
  if (found.main === undefined) return undefined
  const security = found.security ?? found.main.replace(/\/debian\/$/, '/debian-security/')
  return { main: found.main, security }
}

/** mmdebstrap knows the public mirrors; its setup hook sees the sources.list it would use, and stops it there. */
async function defaultMirrors(): Promise<Omit<Mirrors, 'keyring'>> {
  const directory = await mkdtemp(join(tmpdir(), 'berth-mirror-'))
  const copy = join(directory, 'sources.list')
  try {
    await run('mmdebstrap', [
      '--variant=custom',
      `--setup-hook=cp "$1"/etc/apt/sources.list ${copy}; exit 1`,
      GUEST_SUITE,
      join(directory, 'root'),
    ]).catch(() => '')
    const lines = (await readFile(copy, 'utf8')).split('\n')
    const uri = (pattern: RegExp): string | undefined =>
      lines.find((line) => line.startsWith('deb ') && pattern.test(line))?.match(/\bhttps?:\/\/\S+/)?.[0]
    const main = uri(new RegExp(` ${GUEST_SUITE} `))
    if (main === undefined) throw new CommandError('mmdebstrap names no Debian mirror')
    return { main, security: uri(/-security /) ?? main.replace(/\/debian\/?$/, '/debian-security/') }
  } finally {
    await rm(directory, { recursive: true, force: true })
  }
}

const KEYRINGS = ['/usr/share/keyrings/debian-archive-keyring.gpg', '/usr/share/keyrings/debian-archive-keyring.pgp']

/** Debian 13's archive keys: automatic signing key of trixie and of its security archive, and the release key. */
const SUITE_KEY = `(13/${GUEST_SUITE})`

/**
 * A keyring that knows the guest's release. An old host has Debian's keyring but not the new keys in it; then the
 * newest keyring package of the host's own sources is unpacked, not installed.
 */
async function findKeyring(directory: string): Promise<string> {
  for (const path of KEYRINGS) if (await keyringKnowsSuite(path)) return path
  const unpacked = join(directory, 'keyring')
  await mkdir(unpacked, { recursive: true })
  await run('apt-get', ['download', '-o', 'APT::Sandbox::User=root', 'debian-archive-keyring'], { cwd: unpacked })
  const deb = (await readdir(unpacked)).find((name) => name.endsWith('.deb'))
  if (deb) await run('dpkg-deb', ['-x', join(unpacked, deb), unpacked])
  for (const path of KEYRINGS) if (await keyringKnowsSuite(join(unpacked, path))) return join(unpacked, path)
  throw new CommandError(
    `no keyring here knows Debian ${GUEST_SUITE}: install a newer debian-archive-keyring package, then start again`,
  )
}

async function keyringKnowsSuite(path: string): Promise<boolean> {
  // User ids are stored as plain text in OpenPGP packets; reading them takes no gpg, which servers may lack.
  const content = await readFile(path).catch(() => undefined)
  return content?.includes(SUITE_KEY) ?? false
}
