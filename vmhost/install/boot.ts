import { createHash } from 'node:crypto'
import { chmod, copyFile, cp, mkdir, readdir, readFile, stat, symlink } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { CommandError, run } from './command.ts'
import { kernelRelease } from './kernel.ts'
import type { Stage } from './progress.ts'
import type { Resolved } from './store.ts'

/** Fixed, so that the same content gives the same bytes. */
const TOOLS_UUID = '62657274-6874-4f6f-8c73-000000000000'

export const BOOT_RECIPE = { revision: 2, uuid: TOOLS_UUID }

/** Paths of what init/ gives: exe-init, the programs that go to /exe/bin (exe-init too), sshd's configuration. */
export type InitBinaries = { exeInit: string; programs: string[]; sshdConfig: string }

/**
 * Hash of what exe-init is compiled from, so that set-up need not run a compiler to know that nothing changed.
 * Tests beside the sources do not count.
 */
export async function hashInitSources(initPath: string): Promise<string> {
  const hash = createHash('sha256')
  const entries = await readdir(initPath, { recursive: true, withFileTypes: true })
  const files = entries
    .filter((entry) => entry.isFile() && /^(Makefile|sshd_config|.*\.(c|h|S|mk))$/.test(entry.name))
    .map((entry) => join(entry.parentPath, entry.name))
    .filter((path) => !/\/(build|test|tests|fuzz)\//.test(path) && !/[._](test|fuzz)\.[ch]$/.test(path))
    .sort()
  for (const path of files)
    hash
      .update(`${path.slice(initPath.length)}\0`)
      .update(await readFile(path))
      .update('\0')
  return hash.digest('hex').slice(0, 16)
}

/** Compiles exe-init and the session holder (make, which knows what is up to date). */
export async function compileInit(initPath: string, stage: Stage): Promise<InitBinaries> {
  stage.detail('compiling')
  await run('make', ['-C', initPath, 'all'])
  const build = join(initPath, 'build')
  const programs = (await readdir(build)).filter((name) => /^exe-[a-z]+$/.test(name)).sort()
  const exeInit = join(build, 'exe-init')
  const sshdConfig = join(initPath, 'sshd_config')
  for (const path of [exeInit, sshdConfig]) await stat(path)
  return { exeInit, programs: programs.map((name) => join(build, name)), sshdConfig }
}

/**
 * Puts kernel, initramfs and tools disk together: `directory/{vmlinuz,initrd,tools.erofs}`.
 * @param kernelPart from kernel.ts
 * @param sshdPart from sshd.ts
 */
export async function assembleBoot(
  directory: string,
  work: string,
  parts: { kernelPart: string; sshdPart: string; init: InitBinaries },
  stage: Stage,
): Promise<void> {
  const release = await kernelRelease(parts.kernelPart)
  await copyFile(join(parts.kernelPart, 'vmlinuz'), join(directory, 'vmlinuz'))
  stage.detail('initramfs')
  await writeInitramfs(join(directory, 'initrd'), join(work, 'initramfs'), parts)
  stage.detail('tools disk')
  await writeToolsDisk(join(directory, 'tools.erofs'), join(work, 'tools'), parts, release)
  for (const name of ['vmlinuz', 'initrd', 'tools.erofs']) await chmod(join(directory, name), 0o644)
}

/** The shell of images that have none, with its applets: one static program of this host's. */
async function busyboxPath(): Promise<string> {
  const files = (await run('dpkg-query', ['-L', 'busybox-static'])).split('\n')
  const path = files.find((file) => file.endsWith('/bin/busybox'))
  if (path === undefined) throw new CommandError('busybox-static holds no busybox')
  return path
}

/** @returns hashes of the compiled binaries and of the configuration, which make up a boot artifact's identity */
export async function resolveInit(init: InitBinaries): Promise<Resolved> {
  const hashes: Resolved = {}
  for (const path of [...init.programs, init.sshdConfig, await busyboxPath()]) {
    hashes[basename(path)] = createHash('sha256')
      .update(await readFile(path))
      .digest('hex')
  }
  return hashes
}

/** Not compressed: it is under 2 MB, and an emulated guest reads faster than it unpacks. */
async function writeInitramfs(
  file: string,
  tree: string,
  { kernelPart, init }: { kernelPart: string; init: InitBinaries },
): Promise<void> {
  await mkdir(tree, { recursive: true })
  for (const folder of ['dev', 'proc', 'sys', 'root', 'run']) await mkdir(join(tree, folder))
  // Before /init has mounted devtmpfs there is nowhere else to write a complaint to.
  await run('mknod', ['-m', '600', join(tree, 'dev/console'), 'c', '5', '1'])
  await copyFile(init.exeInit, join(tree, 'init'))
  await chmod(join(tree, 'init'), 0o755)
  await cp(join(kernelPart, 'first'), join(tree, 'modules'), { recursive: true })
  await fixTimes(tree)
  await run('sh', [
    '-c',
    'cd "$1" && find . -print0 | sort -z | cpio --null --create --quiet --format=newc --owner=0:0 --reproducible > "$2"',
    'sh',
    tree,
    file,
  ])
}

async function writeToolsDisk(
  file: string,
  tree: string,
  { kernelPart, sshdPart, init }: { kernelPart: string; sshdPart: string; init: InitBinaries },
  release: string,
): Promise<void> {
  for (const folder of ['bin', 'libexec', 'lib/modules', 'etc/ssh', 'empty', 'run']) {
    await mkdir(join(tree, folder), { recursive: true, mode: 0o755 })
  }
  for (const folder of ['bin', 'libexec', 'lib'])
    await cp(join(sshdPart, folder), join(tree, folder), { recursive: true })
  await cp(join(kernelPart, 'modules', release), join(tree, 'lib/modules', release), { recursive: true })
  for (const program of init.programs) {
    const path = join(tree, 'bin', basename(program))
    await copyFile(program, path)
    await chmod(path, 0o755)
  }
  await copyFile(await busyboxPath(), join(tree, 'bin/busybox'))
  await chmod(join(tree, 'bin/busybox'), 0o755)
  await symlink('busybox', join(tree, 'bin/sh'))
  await copyFile(init.sshdConfig, join(tree, 'etc/ssh/sshd_config'))
  await chmod(join(tree, 'etc/ssh/sshd_config'), 0o644)
  // Not compressed: modules already are, and sshd is on the path of every start.
  await run('mkfs.erofs', ['-T0', `-U${TOOLS_UUID}`, '--all-root', '--quiet', file, tree])
  const { size } = await stat(file)
  if (size < 1e6) throw new CommandError(`mkfs.erofs made a tools disk of ${size} bytes`)
}

function fixTimes(tree: string): Promise<string> {
  return run('find', [tree, '-exec', 'touch', '--no-dereference', '--date=@0', '{}', '+'])
}
