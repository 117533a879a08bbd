import { execFile } from 'node:child_process'
import { stat } from 'node:fs/promises'
import { delimiter, join } from 'node:path'
import { promisify } from 'node:util'
import { HypervisorError } from './driver.ts'

const execFileAsync = promisify(execFile)
const listLimitMs = 10_000

/**
 * The kinds of machine that the installed QEMU has: those of its own release, and of many before. Asked of the program
 * itself, once for each that is installed: an update replaces it under a vmhost that runs.
 * @param program name of one in PATH
 * @returns what says whether it has a kind, e.g. `pc-q35-7.2`; it throws HypervisorError when QEMU does not say
 * @see qemu-system-x86_64(1), "-machine help"
 */
export function machineTypesOf(program: string): (type: string) => Promise<boolean> {
  let known: { of: string; types: Promise<ReadonlySet<string>> } | undefined
  return async (type) => {
    const of = await identityOf(program)
    if (known?.of !== of) {
      const asked = { of, types: listTypes(program) }
      known = asked
      // What failed once may have been in the middle of its update.
      asked.types.catch(() => {
        if (known === asked) known = undefined
      })
    }
    return (await known.types).has(type)
  }
}

async function identityOf(program: string): Promise<string> {
  for (const folder of (process.env.PATH ?? '/usr/bin:/bin').split(delimiter)) {
    const path = join(folder, program)
    const found = await stat(path).catch(() => undefined)
    if (found?.isFile()) return [path, found.dev, found.ino, found.size, found.mtimeMs].join(' ')
  }
  throw new HypervisorError('hypervisor.start', `${program} is not installed`)
}

async function listTypes(program: string): Promise<ReadonlySet<string>> {
  const { stdout } = await execFileAsync(program, ['-machine', 'help'], {
    timeout: listLimitMs,
    killSignal: 'SIGKILL',
  }).catch((cause: unknown) => {
    throw new HypervisorError('hypervisor.start', `${program} does not say which machines it can be`, { cause })
  })
  return new Set(stdout.split('\n').map((line) => line.split(' ')[0] ?? ''))
}
