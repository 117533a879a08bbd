import { execFileSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'

const directory = fileURLToPath(new URL('.', import.meta.url))

/**
 * Builds a target of the Makefile for a test; make knows when there is nothing to do. Test files run side by side, so
 * one builds while the others wait.
 * @param target such as `exe-init`
 * @returns the program's path
 */
export function buildInit(target: 'exe-init' | 'exe-hold' | 'pure'): string {
  execFileSync('flock', [`${directory}Makefile`, 'make', '-s', '-C', directory, `build/${target}`], { stdio: 'pipe' })
  return `${directory}build/${target}`
}
