import { dirname, join } from 'node:path'
import { parseArgs } from 'node:util'
import { type Artifact, ensureArtifacts } from './artifacts.ts'
import { run } from './command.ts'
import { HOST_PACKAGES, missingPackages, TEST_PACKAGES } from './packages.ts'
import { type Progress, startProgress } from './progress.ts'

/**
 * Prepares a server: Debian packages, then kernel, tools disk and images in `$BERTH_DATA/artifacts`.
 *
 *     node vmhost/install/main.ts [--only packages,boot,minimal,base] [--test] [--refresh] [--artifacts DIR]
 *
 * Everything that is there already is left alone, in milliseconds; `--refresh` asks for newer packages and builds
 * what they change. It may be killed at any moment and started again. Exit status 1: a sentence on stderr says why.
 */
const STEPS = ['packages', 'boot', 'minimal', 'base'] as const

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      only: { type: 'string' },
      test: { type: 'boolean', default: false },
      refresh: { type: 'boolean', default: false },
      artifacts: { type: 'string' },
    },
  })
  const steps = (values.only?.split(',') ?? STEPS).filter((step) => step !== '')
  const unknown = steps.find((step) => !STEPS.some((known) => known === step))
  if (unknown !== undefined) throw new Error(`--only ${unknown}: expected some of ${STEPS.join(', ')}`)
  const progress = startProgress()
  try {
    if (steps.includes('packages'))
      await ensurePackages([...HOST_PACKAGES, ...(values.test ? TEST_PACKAGES : [])], progress)
    const artifacts = steps.filter((step): step is Artifact => step !== 'packages')
    if (artifacts.length === 0) return
    await ensureArtifacts({
      path: values.artifacts ?? join(process.env.BERTH_DATA || '/var/lib/berth', 'artifacts'),
      artifacts,
      refresh: values.refresh,
      initPath: join(dirname(dirname(import.meta.dirname)), 'init'),
      progress,
    })
  } finally {
    progress.close()
  }
}

async function ensurePackages(names: readonly string[], progress: Progress): Promise<void> {
  const missing = await missingPackages(names)
  if (missing.length === 0) return
  if (process.getuid?.() !== 0) {
    throw new Error(
      `Debian packages are missing. As root: apt-get install --no-install-recommends ${missing.join(' ')}`,
    )
  }
  const stage = progress.stage(`Debian packages (${missing.length})`)
  stage.detail('reading the package lists')
  await run('apt-get', ['update', '-qq'])
  // Progress on a descriptor of its own: apt closes it for the packages' scripts, which must keep their stderr.
  const install = 'exec apt-get install -y -qq --no-install-recommends -o APT::Status-Fd=3 "$@" 3>&1'
  await run('sh', ['-c', install, 'sh', ...missing], {
    onLine: (line) => {
      const [, kind, percent] = /^(dlstatus|pmstatus):[^:]*:([0-9.]+):/.exec(line) ?? []
      if (percent) stage.detail(`${kind === 'dlstatus' ? 'downloaded' : 'installed'} ${Math.floor(Number(percent))} %`)
    },
  })
  const still = await missingPackages(names)
  if (still.length > 0) throw new Error(`apt-get ended well but these packages are not there: ${still.join(' ')}`)
  stage.done()
}

/** The chain, each link once; a failure of several things at once tells each of them. */
function explain(error: unknown, lead = 'set-up failed: '): void {
  if (!(error instanceof Error)) return
  if (error instanceof AggregateError) {
    for (const part of error.errors) explain(part, lead)
    return
  }
  process.stderr.write(`${lead}${error.message}\n`)
  explain(error.cause, '  because: ')
}

try {
  await main()
} catch (error) {
  explain(error)
  process.exitCode = 1
}
