import { chmod, copyFile, cp, mkdir, readdir, readFile, rename, stat, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { GUEST_SUITE, type GuestApt } from './apt.ts'
import { run } from './command.ts'
import type { Stage } from './progress.ts'

const ROOM = import.meta.dirname

/** Log-in user of both images. */
export const LOGIN_USER = 'dev'

/** `minimal`: enough for systemd, sudo and the network; what tests boot, and the ground that `base` is built on. */
const MINIMAL_PACKAGES = [
  'ca-certificates',
  'dbus',
  'iproute2',
  'iputils-ping',
  'kmod',
  'less',
  'libnss-myhostname',
  'libpam-systemd',
  'netbase',
  'procps',
  'sudo',
  'systemd',
  'systemd-sysv',
  'systemd-timesyncd',
  'udev',
]

/** `base`: what a developer expects on day one. */
const BASE_PACKAGES = [
  'bash-completion',
  'bind9-dnsutils',
  'build-essential',
  'bzip2',
  'curl',
  'docker-buildx',
  'docker-cli',
  'docker-compose',
  'docker.io',
  'file',
  'git',
  'git-lfs',
  'gnupg',
  'htop',
  'iptables',
  'jq',
  'lsof',
  'man-db',
  'manpages',
  'nano',
  'ncurses-term',
  'netcat-openbsd',
  'nftables',
  'openssh-client',
  'pkg-config',
  'psmisc',
  'python3',
  'python3-pip',
  'python3-venv',
  'ripgrep',
  'rsync',
  'sqlite3',
  'strace',
  'tmux',
  'tree',
  'uidmap',
  'unzip',
  'vim',
  'wget',
  'xauth',
  'xz-utils',
  'zip',
  'zstd',
]

/** npm as Node 24 ships it; the npm package `node` holds the runtime alone. */
const NPM_VERSION = '11.19.1'

/** What the images hold, as apt would be asked for it on an empty system. */
export const MINIMAL_CLOSURE = ['?essential', '?priority(required)', 'apt', ...MINIMAL_PACKAGES]
export const BASE_CLOSURE = [...MINIMAL_CLOSURE, ...BASE_PACKAGES]

/** Documentation and translations that packages bring and nobody reads in a machine; licences stay. */
const LEFT_OUT = [
  'path-exclude=/usr/share/doc/*',
  'path-include=/usr/share/doc/*/copyright',
  'path-exclude=/usr/share/locale/*',
  'path-include=/usr/share/locale/locale.alias',
  'path-exclude=/usr/share/man/??/*',
  'path-exclude=/usr/share/man/??_*/*',
  'path-exclude=/usr/share/gnome/help/*',
]

/**
 * ext4 as the machines' disks want it: grown online to any size, nothing reserved, a journal that suits 20 GiB. Block
 * and inode sizes are given, because mke2fs takes 1 KiB and 128 bytes for a disk as small as this one is at first.
 */
const FILESYSTEM = [
  '-b',
  '4096',
  '-I',
  '256',
  '-m',
  '0',
  '-J',
  'size=64',
  '-i',
  '16384',
  '-E',
  'lazy_itable_init=1,lazy_journal_init=1,nodiscard',
]

/** Free space in the image as made; the machine's own size comes with `--disk`. */
const SLACK_BYTES = 192 * 1024 * 1024

export async function imageScripts(): Promise<{ minimal: string; base: string }> {
  const read = (name: string): Promise<string> => readFile(join(ROOM, 'rootfs', name), 'utf8')
  return { minimal: await read('minimal.sh'), base: await read('base.sh') }
}

export const MINIMAL_RECIPE = { revision: 1, packages: MINIMAL_PACKAGES, leftOut: LEFT_OUT, suite: GUEST_SUITE }
export const BASE_RECIPE = { revision: 1, packages: BASE_PACKAGES, npm: NPM_VERSION }
export const DISK_RECIPE = { revision: 1, filesystem: FILESYSTEM, slackBytes: SLACK_BYTES }

/** Makes `directory/root.tar`, the file tree of `minimal`. */
export async function buildMinimalRoot(directory: string, work: string, apt: GuestApt, stage: Stage): Promise<void> {
  const root = join(work, 'root')
  const sources = join(work, 'sources.list')
  await writeFile(sources, `${apt.sources}\n`)
  let packages = 0
  await run(
    'mmdebstrap',
    [
      '--mode=root',
      '--variant=minbase',
      '--format=directory',
      `--include=${MINIMAL_PACKAGES.join(',')}`,
      `--keyring=${apt.keyringPath}`,
      '--dpkgopt=force-unsafe-io',
      ...LEFT_OUT.map((option) => `--dpkgopt=${option}`),
      '--aptopt=Acquire::Languages "none"',
      '--aptopt=APT::Install-Recommends "false"',
      // The lists are here already.
      `--setup-hook=mkdir -p "$1"/var/lib/apt/lists && cp -a ${apt.listsPath}/. "$1"/var/lib/apt/lists/`,
      '--skip=update',
      GUEST_SUITE,
      root,
      sources,
    ],
    {
      confined: true,
      onLine: (line) => {
        if (/^Setting up /.test(line)) stage.detail(`${++packages} packages set up`)
        else if (/^Unpacking /.test(line) && packages === 0) stage.detail('unpacking packages')
      },
    },
  )
  stage.detail('configuring')
  const { main, security } = apt.machineMirrors
  await runInRoot(root, join(ROOM, 'rootfs/minimal.sh'), [LOGIN_USER, GUEST_SUITE, main, security])
  await run('tar', ['--create', '--file', join(directory, 'root.tar'), '--directory', root, ...TAR_ATTRIBUTES, '.'])
}

const TAR_ATTRIBUTES = ['--numeric-owner', '--xattrs', '--xattrs-include=*', '--sort=name']

/** Unpacks `minimal` to `root` and makes it `base`. */
export async function buildBaseRoot(
  root: string,
  parts: { minimalTar: string; node: string; npmPath: string; logPath: string },
  apt: GuestApt,
  stage: Stage,
): Promise<void> {
  stage.detail('copying minimal')
  await unpackRoot(parts.minimalTar, root)
  const options = join(root, 'etc/dpkg/dpkg.cfg.d/berth-build')
  await writeFile(options, ['force-unsafe-io', ...LEFT_OUT, ''].join('\n'))
  // No service is started while packages are configured (Debian policy 9.3.3).
  const policy = join(root, 'usr/sbin/policy-rc.d')
  await writeFile(policy, '#!/bin/sh\nexit 101\n', { mode: 0o755 })
  await run(
    'sh',
    ['-ec', INSTALL_IN_ROOT, 'sh', root, apt.archivesPath, apt.listsPath, apt.configPath, ...BASE_PACKAGES],
    {
      confined: true,
      logPath: parts.logPath,
      onLine: (line) => {
        const percent = /^(?:pmstatus|dlstatus):[^:]*:([0-9.]+):/.exec(line)?.[1]
        if (percent) stage.detail(`packages ${Math.floor(Number(percent))} %`)
      },
    },
  )
  await run('rm', ['-f', options, policy])
  stage.detail('Node and npm')
  await copyFile(parts.node, join(root, 'usr/local/bin/node'))
  await chmod(join(root, 'usr/local/bin/node'), 0o755)
  await cp(parts.npmPath, join(root, 'usr/local/lib/node_modules'), { recursive: true, verbatimSymlinks: true })
  stage.detail('configuring')
  await runInRoot(root, join(ROOM, 'rootfs/base.sh'), [LOGIN_USER])
}

/**
 * The host's apt decides and downloads with the host's proxies; dpkg and the packages' scripts run in the root, with
 * mounts that end with this process. The cache is bound in, so that nothing of it stays. Progress comes on a
 * descriptor of its own: apt closes the one it is given for the packages' scripts, and without stderr some fail.
 */
const INSTALL_IN_ROOT = `
root=$1 archives=$2 lists=$3 config=$4; shift 4
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount --rbind /dev "$root/dev"
mkdir -p "$root/var/cache/apt/archives"
mount --bind "$archives" "$root/var/cache/apt/archives"
exec apt-get -c "$config" install -y -qq -o APT::Status-Fd=3 \
  -o Dir::State::status="$root/var/lib/dpkg/status" \
  -o Dir::State::lists="$lists" \
  -o Dir::State::extended_states="$root/var/lib/apt/extended_states" \
  -o Dir::Cache::archives="$root/var/cache/apt/archives" \
  -o Dir::Log="$root/var/log/apt" \
  -o DPkg::Chroot-Directory="$root" \
  -o Dpkg::Use-Pty=0 \
  "$@" 3>&1
`

/** npm from the npm registry, unpacked to `directory/npm`. */
export async function fetchNpm(directory: string): Promise<void> {
  await mkdir(directory, { recursive: true })
  await run('npm', ['pack', '--silent', `npm@${NPM_VERSION}`, '--pack-destination', directory], { cwd: directory })
  const archive = (await readdir(directory)).find((name) => name.endsWith('.tgz'))
  await run('tar', ['-xzf', archive ?? '', '--no-same-owner'], { cwd: directory })
  await rename(join(directory, 'package'), join(directory, 'npm'))
  await run('rm', [join(directory, archive ?? '')])
}

export async function unpackRoot(tar: string, root: string): Promise<void> {
  await mkdir(root, { recursive: true })
  await run('tar', [
    '--extract',
    '--file',
    tar,
    '--directory',
    root,
    ...TAR_ATTRIBUTES.slice(0, 3),
    '--preserve-permissions',
    '--same-owner',
  ])
}

/**
 * Makes the unpartitioned ext4 disk from a file tree, without mounting anything.
 * @returns its size in bytes, a whole number of MiB; the file is sparse
 */
export async function makeDisk(file: string, root: string): Promise<number> {
  const used = await run('du', ['--summarize', '--block-size=1', '--one-file-system', root])
  const count = await run('sh', ['-c', 'find "$1" -xdev | wc -l', 'sh', root])
  const contentBytes = Number(used.split('\t')[0])
  // Inode tables, bitmaps and the journal come on top of the content.
  const metadataBytes = Math.ceil(Number(count) * 512 + contentBytes / 32) + 64 * 1024 * 1024
  const mebibytes = Math.ceil((contentBytes + metadataBytes + SLACK_BYTES) / (1024 * 1024))
  // An image of many small files has more of them than the usual number of inodes for its size.
  const inodes = Math.ceil(Number(count) * 1.25) + 1024
  const many = inodes > (mebibytes * 1024 * 1024) / 16384 ? ['-N', String(inodes)] : []
  await mkdir(dirname(file), { recursive: true })
  const options = ['-q', '-F', '-t', 'ext4', '-L', 'root', '-d', root, ...FILESYSTEM, ...many]
  await run('mke2fs', [...options, file, `${mebibytes}M`])
  await chmod(file, 0o644)
  // mke2fs leaves a last block group out that is too small to be worth its tables.
  return (await stat(file)).size
}

/** Runs a script of rootfs/ in the root, with the API filesystems there for its time. */
async function runInRoot(root: string, script: string, args: readonly string[]): Promise<void> {
  const target = join(root, 'berth-configure')
  await copyFile(script, target)
  await run(
    'sh',
    [
      '-ec',
      'root=$1; shift; mount -t proc proc "$root/proc"; mount --rbind /dev "$root/dev"; exec chroot "$root" /bin/sh -eu /berth-configure "$@"',
      'sh',
      root,
      ...args,
    ],
    { confined: true },
  )
  await run('rm', [target])
}
