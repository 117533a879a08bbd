import { copyFile, mkdir, readdir, readFile, rename, symlink, writeFile } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { candidateVersion, type GuestApt, runApt } from './apt.ts'
import { CommandError, run } from './command.ts'
import type { Stage } from './progress.ts'

const KERNEL_PACKAGE = 'linux-image-cloud-amd64'

/** What exe-init needs before it can read modules from the tools disk; those built into the kernel fall out. */
const FIRST_STAGE_MODULES = [
  'virtio_pci',
  'virtio_blk',
  'virtio_net',
  'virtio_console',
  'virtio_balloon',
  'virtio_rng',
  'pvpanic-pci',
  'vmw_vsock_virtio_transport',
  'erofs',
  'ext4',
  'af_packet',
]

export const KERNEL_RECIPE = { revision: 1, package: KERNEL_PACKAGE, modules: FIRST_STAGE_MODULES }

/** @returns `kernel` (package version) and `name` (the package that the kernel itself is in) */
export async function resolveKernel(apt: GuestApt): Promise<{ kernel: string; name: string }> {
  const kernel = await candidateVersion(apt, KERNEL_PACKAGE)
  const dependencies = await runApt(apt, 'apt-cache', ['show', `${KERNEL_PACKAGE}=${kernel}`])
  const name = /^Depends:.*?\b(linux-image-\S+-amd64)\b/m.exec(dependencies)?.[1]
  if (name === undefined) throw new CommandError(`${KERNEL_PACKAGE} ${kernel} names no kernel`)
  return { kernel, name }
}

/**
 * Unpacks the guest release's cloud kernel into `directory`: `vmlinuz`, `modules/<release>/` (as it goes to
 * /lib/modules) and `first/` (the modules of the initramfs, decompressed, with `list` in load order).
 */
export async function unpackKernel(
  directory: string,
  work: string,
  name: string,
  apt: GuestApt,
  stage: Stage,
): Promise<void> {
  stage.detail(`downloading ${name}`)
  await runApt(apt, 'apt-get', ['download', '-qq', name], { cwd: work })
  const deb = (await readdir(work)).find((file) => file.endsWith('.deb'))
  if (deb === undefined) throw new CommandError(`apt-get brought no ${name}`)
  const tree = join(work, 'tree')
  stage.detail('unpacking')
  await run('dpkg-deb', ['-x', join(work, deb), tree])
  const modulesPath = (await readdir(join(tree, 'usr/lib/modules')).catch(() => [])).length > 0 ? 'usr/lib' : 'lib'
  // kmod before version 34 looks in lib/ only.
  if (modulesPath === 'usr/lib') await symlink('usr/lib', join(tree, 'lib'))
  const release = (await readdir(join(tree, 'lib/modules')))[0]
  if (release === undefined) throw new CommandError(`${name} holds no modules`)
  await run('depmod', ['-b', tree, release])
  await writeFirstStage(join(directory, 'first'), tree, release)
  await rename(join(tree, 'boot', `vmlinuz-${release}`), join(directory, 'vmlinuz'))
  await rename(join(tree, 'boot', `config-${release}`), join(directory, 'config'))
  await mkdir(join(directory, 'modules'))
  await rename(join(tree, 'lib/modules', release), join(directory, 'modules', release))
  await writeFile(join(directory, 'release'), `${release}\n`)
}

/** modprobe itself says what has to be loaded and in which order, soft dependencies included, for any version. */
async function writeFirstStage(directory: string, tree: string, release: string): Promise<void> {
  await mkdir(directory)
  const order: string[] = []
  for (const module of FIRST_STAGE_MODULES) {
    const steps = await run('modprobe', ['-d', tree, '-S', release, '--show-depends', module]).catch(
      (error: unknown) => {
        throw new CommandError(`kernel ${release} has no ${module}`, { cause: error })
      },
    )
    for (const step of steps.split('\n')) {
      const path = /^insmod (\S+)/.exec(step)?.[1]
      if (path === undefined || order.includes(path)) continue
      order.push(path)
    }
  }
  const names: string[] = []
  for (const path of order) {
    const file = basename(path)
    const name = file.replace(/\.(xz|zst|gz)$/, '')
    await copyFile(path, join(directory, file))
    if (file.endsWith('.xz')) await run('xz', ['-d', join(directory, file)])
    if (file.endsWith('.zst')) await run('zstd', ['-q', '-d', '--rm', join(directory, file)])
    if (file.endsWith('.gz')) await run('gzip', ['-d', join(directory, file)])
    names.push(name)
  }
  await writeFile(join(directory, 'list'), names.map((name) => `${name}\n`).join(''))
}

/** @returns the kernel release of an unpacked kernel part */
export async function kernelRelease(part: string): Promise<string> {
  return (await readFile(join(part, 'release'), 'utf8')).trim()
}
