import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { StorageError } from './errors.ts'

const execFileAsync = promisify(execFile)

/** @throws StorageError with what the program said */
export async function run(program: string, args: readonly string[]): Promise<string> {
  try {
    const { stdout } = await execFileAsync(program, [...args], {
      env: { ...process.env, LC_ALL: 'C' },
      maxBuffer: 1 << 20,
    })
    return stdout
  } catch (error) {
    const said = String((error as { stderr?: unknown }).stderr ?? '').trim()
    if (/No space left/.test(said))
      throw new StorageError('storage.full', "The server's disk is full", { cause: error })
    throw new StorageError('storage.failed', `${program}: ${said || (error as Error).message}`, { cause: error })
  }
}
