/**
 * The Python that tests run other people's clients with: a virtual environment of requirements.txt, whose every file
 * is pinned by its hash, in the tests' cache. `npm test` makes it before the tests, which need no network for it:
 *
 *     node test/clients/python.ts
 */
import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync } from 'node:fs'
import { join } from 'node:path'

const SYSTEM_PYTHON = '/usr/bin/python3'
const REQUIREMENTS = join(import.meta.dirname, 'requirements.txt')

/**
 * The interpreter that finds the clients.
 * @throws with the command that makes it
 */
export function testPython(): string {
  const python = join(environmentPath(), 'bin', 'python')
  if (!existsSync(python)) throw new Error(`no ${python}: npm test makes it, or node test/clients/python.ts`)
  return python
}

/** Another Python, or other requirements, are another environment. */
function environmentPath(): string {
  const version = execFileSync(SYSTEM_PYTHON, ['--version'], { encoding: 'utf8' })
  const hash = createHash('sha256').update(version).update(readFileSync(REQUIREMENTS)).digest('hex').slice(0, 16)
  return join(process.env.BERTH_TEST_CACHE || '/var/cache/berth', `python-${hash}`)
}

function makeEnvironment(): void {
  const path = environmentPath()
  if (existsSync(path)) return
  const partial = `${path}.${process.pid}`
  mkdirSync(partial, { recursive: true })
  try {
    const run = (program: string, ...parameters: string[]) =>
      execFileSync(program, parameters, { stdio: ['ignore', 'ignore', 'inherit'] })
    run(SYSTEM_PYTHON, '-m', 'venv', partial)
    const pip = ['-m', 'pip', 'install', '--quiet', '--no-input', '--disable-pip-version-check']
    run(join(partial, 'bin', 'python'), ...pip, '--require-hashes', '--only-binary', ':all:', '-r', REQUIREMENTS)
    // Whole, or not there: it finds its packages by where it stands.
    renameSync(partial, path)
  } catch (error) {
    // Another run was quicker.
    if (!existsSync(path)) throw error
  } finally {
    rmSync(partial, { recursive: true, force: true })
  }
}

if (import.meta.main) makeEnvironment()
