/**
 * What web/build.ts made of the dashboard. All of it is read when this module is loaded: the process gives root up before
 * it serves, and then it may not be able to read its checkout.
 */
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Asset } from '../control/asset.ts'

export type DashboardBuild = {
  /** paths on the control host, `/assets/main-1a2b.js` */
  script: string
  styles: string[]
  fonts: string[]
  icon: string
  /** patterns as `/machines/:name`, with what such a page loads beside the script */
  routes: { path: string; scripts: string[]; styles: string[] }[]
  /** by name, as it stands behind `/assets/` */
  files: ReadonlyMap<string, Asset>
}

const DIST = join(import.meta.dirname, '../../../web/dist')

/** undefined where nothing was built: then there are the pages that need no script, and no others */
export const DASHBOARD: DashboardBuild | undefined = readBuild(DIST)

function readBuild(folder: string): DashboardBuild | undefined {
  const description = read(join(folder, 'build.json'))
  if (!description) return undefined
  type Written = Omit<DashboardBuild, 'files'> & { files: Record<string, string> }
  const { script, styles, fonts, icon, routes, files } = JSON.parse(description.toString('utf8')) as Written
  const paths = (list: readonly string[]) => list.map((file) => `/${file}`)
  return {
    script: `/${script}`,
    styles: paths(styles),
    fonts: paths(fonts),
    icon: `/${icon}`,
    routes: routes.map((route) => ({ path: route.path, scripts: paths(route.scripts), styles: paths(route.styles) })),
    files: new Map(
      Object.entries(files).map(([file, type]) => {
        const path = join(folder, file)
        const plain = readFileSync(path)
        return [file.replace(/^assets\//, ''), { type, plain, gzip: read(`${path}.gz`), brotli: read(`${path}.br`) }]
      }),
    ),
  }
}

function read(path: string): Buffer | undefined {
  return existsSync(path) ? readFileSync(path) : undefined
}
