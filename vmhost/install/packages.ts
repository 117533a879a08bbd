import { execFile } from 'node:child_process'
import { promisify } from 'node:util'

const execFileAsync = promisify(execFile)

/** Debian packages that a server running machines needs. The one list: set-up installs it, messages name it. */
export const HOST_PACKAGES = [
  'busybox-static',
  'ca-certificates',
  'conntrack',
  'cpio',
  'dpkg-dev',
  'e2fsprogs',
  'erofs-utils',
  'g++',
  'gcc',
  'gpgv',
  'iproute2',
  'kmod',
  'libssl-dev',
  'make',
  'mmdebstrap',
  'musl-tools',
  'nftables',
  'openssh-client',
  'patch',
  'patchelf',
  'procps',
  'python3',
  'qemu-system-x86',
  'util-linux',
  'xfsprogs',
  'xz-utils',
  'zlib1g-dev',
  'zstd',
] as const

/**
 * What `npm test` needs besides: the SSH clients and servers that users have, what they drive through them, dig, an
 * ACME directory, a registry of images and what looks into them, and a browser with a font of known shape and what reads
 * what it prints.
 */
export const TEST_PACKAGES = [
  'attr',
  'bind9-dnsutils',
  'chromium',
  'curl',
  'docker-registry',
  'dropbear-bin',
  'fonts-dejavu-core',
  'git',
  'openssh-server',
  'openssh-sftp-server',
  'openssl',
  'pebble',
  'poppler-utils',
  'putty-tools',
  'python3-asyncssh',
  'python3-paramiko',
  'python3-venv',
  'rclone',
  'rsync',
  'tmux',
] as const

/**
 * Asks dpkg which of the packages are not there; one call, a few milliseconds.
 * @returns the names that are missing or only half installed, in the order given
 */
export async function missingPackages(names: readonly string[]): Promise<string[]> {
  // dpkg-query exits 1 as soon as one name is unknown to it and still prints the others.
  const { stdout } = await execFileAsync(
    'dpkg-query',
    ['-W', '-f', '${binary:Package} ${db:Status-Status}\n', ...names],
    {
      maxBuffer: 1 << 24,
    },
  ).catch((error: { stdout?: string; code?: unknown }) => {
    if (error.code === 1 && typeof error.stdout === 'string') return { stdout: error.stdout }
    throw new Error('dpkg-query cannot be run: Berth needs Debian or Ubuntu', { cause: error })
  })
  const installed = new Set<string>()
  for (const line of stdout.split('\n')) {
    const [name, status] = line.split(' ')
    if (name && status === 'installed') installed.add(name.split(':')[0] ?? name)
  }
  return names.filter((name) => !installed.has(name))
}
