import { globSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { expect, it } from 'vitest'

const GATEWAY = new URL('..', import.meta.url).pathname

/** Modules that a module of the gateway loads: types are gone when it runs. */
function loads(file: string): string[] {
  const imports = readFileSync(join(GATEWAY, file), 'utf8').matchAll(/^import (?!type )[^'"]*'(\.[^']+)'/gm)
  return [...imports].map(([, path = '']) => join(dirname(file), path))
}

it('commands stand on billing, and nothing of billing on a command that stands on billing', () => {
  const own = globSync('billing/**/*.ts', { cwd: GATEWAY }).filter((file) => !/\.test\.ts$|\/testing\//.test(file))
  expect(own.length).toBeGreaterThan(30)
  const seen = new Map<string, string>()
  const next = own.flatMap((file) => loads(file).map((path) => ({ path, way: `${file} > ${path}` })))
  for (const { path, way } of next) {
    if (!path.startsWith('commands/') || seen.has(path)) continue
    seen.set(path, way)
    next.push(...loads(path).map((further) => ({ path: further, way: `${way} > ${further}` })))
  }
  expect([...seen.keys()]).toContain('commands/error.ts')
  const back = [...seen].filter(([path]) => loads(path).some((further) => further.startsWith('billing/')))
  expect(back.map(([, way]) => way)).toEqual([])
})
