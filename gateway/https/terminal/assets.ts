/**
 * What the control host's pages load: scripts and styles, each at an address that has the hash of all of them in it, so
 * that a browser may keep it for ever. The browser's own modules are TypeScript like the rest; their types are taken
 * out when somebody first asks, and no bundler is needed for what is one library and a few small files.
 *
 * The files are read when this module is loaded: the process gives root up before it serves, and then it may not be
 * able to read its checkout.
 */
import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { gzip } from 'node:zlib'
import type { Asset } from '../control/asset.ts'

const ROOT = join(import.meta.dirname, '../../..')
const SCRIPT = 'text/javascript; charset=utf-8'
const STYLE = 'text/css; charset=utf-8'

/** Where each file of an address lies; several make one. */
const FILES: Record<string, readonly string[]> = {
  'xterm.js': ['node_modules/@xterm/xterm/lib/xterm.mjs'],
  'addon-fit.js': ['node_modules/@xterm/addon-fit/lib/addon-fit.mjs'],
  'terminal.css': [
    ...['web/pages/shared.css', 'web/pages/page.css'],
    ...['node_modules/@xterm/xterm/css/xterm.css', 'web/terminal/terminal.css'],
  ],
  ...Object.fromEntries(
    ['connection', 'keys', 'main', 'menu', 'page', 'protocol', 'sentence', 'themes'].map((name) => [
      `${name}.ts`,
      [`web/terminal/${name}.ts`],
    ]),
  ),
}

/** What browsers cannot resolve by themselves. */
const PACKAGES: Record<string, string> = { '@xterm/xterm': './xterm.js', '@xterm/addon-fit': './addon-fit.js' }

const SOURCES = new Map(
  Object.entries(FILES).map(([name, paths]) => [
    name,
    paths.map((path) => readFileSync(join(ROOT, path), 'utf8')).join('\n'),
  ]),
)
const HASH = [...SOURCES]
  .reduce((hash, [name, text]) => hash.update(`${name}\0${text}\0`), createHash('sha256').update(process.version))
  .digest('hex')
  .slice(0, 16)
let made: Promise<Map<string, Asset>> | undefined

/** The path of a file of `web/terminal` or of a library, as a page names it. */
export function assetPath(name: string): string {
  if (!SOURCES.has(name)) throw new Error(`${name} is not among the assets`)
  return `/assets/${HASH}/${name}`
}

/** @returns undefined when there is none: another version's hash, or no such name */
export async function findAsset(hash: string, name: string): Promise<Asset | undefined> {
  if (hash !== HASH) return undefined
  made ??= makeAll()
  try {
    return (await made).get(name)
  } catch (error) {
    made = undefined
    throw error
  }
}

async function makeAll(): Promise<Map<string, Asset>> {
  const stripped = await stripTypes([...SOURCES].filter(([name]) => name.endsWith('.ts')))
  const assets = [...SOURCES].map(async ([name, source]): Promise<[string, Asset]> => {
    const script = stripped.get(name)
    const plain = Buffer.from(script === undefined ? withoutMap(source) : resolved(script))
    const type = name.endsWith('.css') ? STYLE : SCRIPT
    return [name, { type, plain, gzip: await promisify(gzip)(plain, { level: 9 }) }]
  })
  return new Map(await Promise.all(assets))
}

/**
 * Node's own type stripping, as it loads this very file. In a process of its own: the compiler takes 20 MiB, which
 * would stay. It is this program's file that is run, whatever became of the right to reach it by its path.
 */
async function stripTypes(sources: [name: string, text: string][]): Promise<Map<string, string>> {
  const options = { cwd: '/', env: {}, timeout: STRIP_LIMIT_MS, maxBuffer: STRIPPED_MOST_BYTES }
  const running = promisify(execFile)('/proc/self/exe', [WITHOUT_WARNING, '--eval', STRIPPER], options)
  running.child.stdin?.end(JSON.stringify(sources))
  return new Map(JSON.parse((await running).stdout))
}

const STRIP_LIMIT_MS = 30_000
const STRIPPED_MOST_BYTES = 4 * 1024 * 1024
/** The function may change in another version of Node; ours is pinned. */
const WITHOUT_WARNING = '--disable-warning=ExperimentalWarning'
const STRIPPER = `
const sources = JSON.parse(require('node:fs').readFileSync(0, 'utf8'))
const { stripTypeScriptTypes } = require('node:module')
process.stdout.write(JSON.stringify(sources.map(([name, text]) => [name, stripTypeScriptTypes(text)])))`

/** Imports of packages lead to where they are served. */
function resolved(script: string): string {
  return script.replace(/(\bfrom ')(@[^']+)(')/g, (whole, before: string, name: string, after: string) =>
    PACKAGES[name] === undefined ? whole : `${before}${PACKAGES[name]}${after}`,
  )
}

/** Source maps are not served; browsers with their tools open would ask for them in vain. */
function withoutMap(source: string): string {
  return source.replace(/\n\/\/# sourceMappingURL=\S+\s*$/, '\n')
}
