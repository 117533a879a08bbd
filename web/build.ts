/**
 * Builds the dashboard into web/dist, unless what lies there was made of the same sources. Beside each file lie its
 * forms for gzip and Brotli, and `build.json` tells the gateway what there is: it reads that and nothing else of web/.
 *
 *     node web/build.ts
 *
 * Two that build at once, as two runs of tests do, do not meet: each makes a folder of its own and moves it there whole.
 */
import { createHash } from 'node:crypto'
import { globSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { join, relative } from 'node:path'
import { brotliCompressSync, constants, gzipSync } from 'node:zlib'

/** What web/dist/build.json says; gateway/https/dashboard/build.ts reads it. Paths are below web/dist. */
export type Build = {
  /** of all sources */
  hash: string
  script: string
  styles: string[]
  /** the monospaced face, which every page shows */
  fonts: string[]
  icon: string
  /** patterns as `/machines/:name`, and what a page loads beside the script */
  routes: { path: string; scripts: string[]; styles: string[] }[]
  /** all there is to serve, with its media type */
  files: Record<string, string>
}

const WEB = import.meta.dirname
const DIST = join(WEB, 'dist')
const TYPES: Record<string, string> = {
  js: 'text/javascript; charset=utf-8',
  css: 'text/css; charset=utf-8',
  woff2: 'font/woff2',
  svg: 'image/svg+xml',
}
/** These are compressed as they are. */
const PACKED = /\.(woff2)$/

type Chunk = { file: string; imports?: string[]; css?: string[] }

const hash = hashSources()
if (readHash() !== hash) {
  const startedAtMs = performance.now()
  const build = await make(hash)
  const bytes = firstLoadBytes(build)
  const seconds = ((performance.now() - startedAtMs) / 1000).toFixed(1)
  process.stderr.write(
    `dashboard: ${seconds} s, ${Math.ceil(bytes / 1024)} KiB of script, compressed, on the first load\n`,
  )
}

function hashSources(): string {
  const files = globSync(['src/**/*', 'pages/shared.css', '*.ts', '*.json', '../package-lock.json'], {
    cwd: WEB,
    withFileTypes: true,
  })
    .filter((entry) => entry.isFile() && !entry.name.endsWith('.test.ts'))
    .map((entry) => join(entry.parentPath, entry.name))
    .sort()
  const sum = createHash('sha256').update(process.version)
  for (const file of files)
    sum
      .update(`${relative(WEB, file)}\0`)
      .update(readFileSync(file))
      .update('\0')
  return sum.digest('hex')
}

function readHash(): string | undefined {
  try {
    return (JSON.parse(readFileSync(join(DIST, 'build.json'), 'utf8')) as Build).hash
  } catch {
    return undefined
  }
}

async function make(hash: string): Promise<Build> {
  const partial = join(WEB, `.dist-${process.pid}`)
  try {
    // The same whoever builds it: tests run with another.
    process.env.NODE_ENV = 'production'
    // Only now: a start that has nothing to build does without it.
    const { build } = await import('vite')
    const { default: config } = await import('./vite.config.ts')
    await build({ ...config, configFile: false, build: { ...config.build, outDir: partial, emptyOutDir: true } })
    const manifest = readManifest(partial)
    const made = await describe(partial, manifest, hash)
    for (const file of Object.keys(made.files)) compress(join(partial, file))
    writeFileSync(join(partial, 'build.json'), `${JSON.stringify(made, null, 2)}\n`)
    rmSync(join(partial, 'manifest.json'))
    replaceFolder(partial, DIST)
    return made
  } finally {
    rmSync(partial, { recursive: true, force: true })
  }
}

async function describe(folder: string, manifest: Record<string, Chunk>, hash: string): Promise<Build> {
  const entry = chunkOf(manifest, 'src/main.tsx')
  // The path is no literal: its types are the browser's, and this is checked as Node's.
  const table: string = './src/routes.ts'
  const { ROUTES } = (await import(table)) as { ROUTES: { path: string; source: string }[] }
  const ofEntry = reached(manifest, 'src/main.tsx')
  const routes = ROUTES.map(({ path, source }) => {
    const chunks = reached(manifest, `src/${source}`)
    // What these import is loaded along with them, and not when they are there.
    const files = [...ofEntry, ...chunks].map(({ file }) => file).filter((file) => file !== entry.file)
    return {
      path,
      scripts: [...new Set(files)],
      styles: [...new Set(chunks.flatMap(({ css = [] }) => css))],
    }
  })
  const icon = readFileSync(join(WEB, 'src/icon.svg'))
  const iconFile = `assets/icon-${createHash('sha256').update(icon).digest('base64url').slice(0, 8)}.svg`
  mkdirSync(join(folder, 'assets'), { recursive: true })
  writeFileSync(join(folder, iconFile), icon)
  const files = globSync('assets/*', { cwd: folder }).sort()
  return {
    hash,
    script: entry.file,
    styles: [...new Set(reached(manifest, 'src/main.tsx').flatMap(({ css = [] }) => css))],
    fonts: files.filter((file) => file.endsWith('.woff2')),
    icon: iconFile,
    routes,
    files: Object.fromEntries(files.map((file) => [file, typeOf(file)])),
  }
}

function readManifest(folder: string): Record<string, Chunk> {
  return JSON.parse(readFileSync(join(folder, 'manifest.json'), 'utf8')) as Record<string, Chunk>
}

function chunkOf(manifest: Record<string, Chunk>, name: string): Chunk {
  const chunk = manifest[name]
  if (!chunk) throw new Error(`${name} is not among what Vite built: ${Object.keys(manifest).join(', ')}`)
  return chunk
}

/** A chunk and all that it imports at once, itself first. */
function reached(manifest: Record<string, Chunk>, name: string, seen = new Set<string>()): Chunk[] {
  if (seen.has(name)) return []
  seen.add(name)
  const chunk = chunkOf(manifest, name)
  return [chunk, ...(chunk.imports ?? []).flatMap((one) => reached(manifest, one, seen))]
}

function typeOf(file: string): string {
  const type = TYPES[file.split('.').at(-1) ?? '']
  if (type === undefined) throw new Error(`${file}: no media type is known for it`)
  return type
}

function compress(path: string): void {
  if (PACKED.test(path)) return
  const plain = readFileSync(path)
  writeFileSync(`${path}.gz`, gzipSync(plain, { level: 9 }))
  const parameters = { [constants.BROTLI_PARAM_QUALITY]: 11, [constants.BROTLI_PARAM_SIZE_HINT]: plain.length }
  writeFileSync(`${path}.br`, brotliCompressSync(plain, { params: parameters }))
}

/** rename(2) replaces no folder that has something in it. */
function replaceFolder(from: string, to: string): void {
  const old = `${to}-${process.pid}.old`
  try {
    renameSync(to, old)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
  }
  try {
    renameSync(from, to)
  } catch (error) {
    // Another build of the same sources was quicker.
    if (!['ENOTEMPTY', 'EEXIST'].includes((error as NodeJS.ErrnoException).code ?? '')) throw error
  }
  rmSync(old, { recursive: true, force: true })
}

/** What the list of machines, the home page, has to load of script; gzip, as the target says. */
function firstLoadBytes(build: Build): number {
  const home = build.routes.find(({ path }) => path === '/')
  return [build.script, ...(home?.scripts ?? [])]
    .map((file) => readFileSync(join(DIST, `${file}.gz`)).length)
    .reduce((sum, one) => sum + one, 0)
}
