import { copyFile, cp, mkdir, readdir, readFile, utimes } from 'node:fs/promises'
import { join } from 'node:path'
import { candidateVersion, type GuestApt, runApt } from './apt.ts'
import { CommandError, run } from './command.ts'
import type { Stage } from './progress.ts'

const CONFIGURE = [
  '--prefix=/exe',
  '--sbindir=/exe/bin',
  '--libexecdir=/exe/libexec',
  '--sysconfdir=/exe/etc/ssh',
  // The guest's /run may be wiped (`systemctl stop ssh` does), its /etc/shadow may lock accounts with `!`: the
  // platform's sshd uses neither.
  '--with-privsep-path=/exe/empty',
  '--with-privsep-user=nobody',
  '--without-pam',
  '--without-shadow',
  '--disable-utmp',
  '--disable-utmpx',
  '--disable-wtmp',
  '--disable-wtmpx',
  '--disable-lastlog',
  '--disable-pkcs11',
  '--disable-strip',
]

/** In bin/ what a person may start, in libexec/ what sshd starts. */
const PROGRAMS: Record<string, 'bin' | 'libexec'> = {
  sshd: 'bin',
  scp: 'bin',
  'sshd-session': 'libexec',
  'sshd-auth': 'libexec',
  'sftp-server': 'libexec',
}

/** Given to make, not to configure, whose test programs would otherwise look for a loader under /exe and not run. */
const LINKED = '-Wl,-rpath,/exe/lib -Wl,--dynamic-linker=/exe/lib/ld-linux-x86-64.so.2'

export const SSHD_RECIPE = { revision: 1, configure: CONFIGURE, programs: PROGRAMS, linked: LINKED }

/** @returns the version of the source, and of this host's libraries that go with it */
export async function resolveSshd(apt: GuestApt): Promise<{ openssh: string; libraries: string[] }> {
  const openssh = await candidateVersion(apt, 'openssh-server')
  const owners = await run('dpkg-query', ['-W', '-f', '${Package} ${Version}\n', 'libc6', 'libssl-dev', 'zlib1g-dev'])
  return { openssh, libraries: owners.split('\n') }
}

/**
 * Compiles the platform's sshd from the guest release's source package, Debian's security patches included, and
 * puts it with the C library and loader of this host into `directory/{bin,libexec,lib}`: about 12 MB that serve
 * any root filesystem.
 */
export async function buildSshd(
  directory: string,
  work: string,
  version: string,
  apt: GuestApt,
  stage: Stage,
): Promise<void> {
  stage.detail('downloading the source')
  await runApt(apt, 'apt-get', ['source', '--download-only', '-qq', `openssh=${version}`], { cwd: work })
  const description = (await readdir(work)).find((name) => name.endsWith('.dsc'))
  if (description === undefined) throw new CommandError('apt-get source brought no openssh')
  const source = join(work, 'source')
  await run('dpkg-source', ['--no-check', '-x', description, source], { cwd: work })
  // Debian's patches touch configure.ac too; what they add there (GSSAPI, TCP wrappers, systemd) is not wanted here
  // and stays switched off, so upstream's configure serves, once it is not older than its source.
  await utimes(join(source, 'configure'), new Date(), new Date())
  stage.detail('configuring')
  await run('./configure', CONFIGURE, { cwd: source })
  const makefile = await readFile(join(source, 'Makefile'), 'utf8')
  const flags = /^LDFLAGS=(.*)$/m.exec(makefile)?.[1]?.trim()
  if (flags === undefined) throw new CommandError("openssh's Makefile names no LDFLAGS")
  let compiled = 0
  await run('make', ['-j2', `LDFLAGS=${flags} ${LINKED}`, ...Object.keys(PROGRAMS)], {
    cwd: source,
    onLine: () => stage.detail(`compiling, ${++compiled} files`),
  })
  for (const folder of ['bin', 'libexec', 'lib']) await mkdir(join(directory, folder))
  const installed: string[] = []
  for (const [program, folder] of Object.entries(PROGRAMS)) {
    const path = join(directory, folder, program)
    await copyFile(join(source, program), path)
    await run('strip', [path])
    installed.push(path)
  }
  await copyLibraries(installed, join(directory, 'lib'))
}

/** Copies the libraries that the programs and each other need, and the loader, from this host. */
async function copyLibraries(programs: readonly string[], directory: string): Promise<void> {
  const cache = await run('ldconfig', ['-p'])
  const locate = (name: string): string => {
    const line = cache.split('\n').find((entry) => entry.trim().startsWith(`${name} (libc6,x86-64`))
    const path = line?.split(' => ')[1]
    if (path === undefined) throw new CommandError(`this host has no ${name}`)
    return path
  }
  const pending = [...programs]
  const copied = new Map<string, string>([['ld-linux-x86-64.so.2', locate('ld-linux-x86-64.so.2')]])
  for (let file = pending.pop(); file !== undefined; file = pending.pop()) {
    const needed = await run('patchelf', ['--print-needed', file])
    for (const name of needed.split('\n').filter(Boolean)) {
      if (copied.has(name)) continue
      const path = locate(name)
      copied.set(name, path)
      pending.push(path)
    }
  }
  for (const [name, path] of copied) {
    await cp(path, join(directory, name), { dereference: true })
    // ld.so searches /exe/lib for what the programs need (their rpath) but not for what the libraries need.
    if (!/^(ld-linux|libc\.so)/.test(name)) await run('patchelf', ['--set-rpath', '/exe/lib', join(directory, name)])
  }
}
