/**
 * The pages and where they are. Each is loaded when it is first shown; the gateway serves the application at these
 * paths and has a browser load a page's own files along with it (build.ts hands it this table).
 */
import type { ComponentType } from 'preact'

/** What is between the slashes, by the name after the colon. */
export type PageProps = { params: Record<string, string> }

export type Route = {
  /** `/machines/:name`; a part with a colon is anything but a slash */
  path: string
  /** the page's file below src/ */
  source: string
  load: () => Promise<{ Page: ComponentType<PageProps> }>
  /** heads the page in the browser's tab until the page says otherwise */
  title: string
  /** stands in the navigation, under this word */
  menu?: string
  /** only the operator sees it there */
  operator?: true
}

export const ROUTES: readonly Route[] = [
  {
    path: '/',
    source: 'pages/machines.tsx',
    load: () => import('./pages/machines.tsx'),
    title: 'Machines',
    menu: 'Machines',
  },
  { path: '/machines/:name', source: 'pages/machine.tsx', load: () => import('./pages/machine.tsx'), title: 'Machine' },
  { path: '/new', source: 'pages/new.tsx', load: () => import('./pages/new.tsx'), title: 'New machine' },
  {
    path: '/keys',
    source: 'pages/keys.tsx',
    load: () => import('./pages/keys.tsx'),
    title: 'Keys and tokens',
    menu: 'Keys',
  },
  { path: '/usage', source: 'pages/usage.tsx', load: () => import('./pages/usage.tsx'), title: 'Usage', menu: 'Usage' },
  {
    path: '/billing',
    source: 'pages/billing.tsx',
    load: () => import('./pages/billing.tsx'),
    title: 'Billing',
    menu: 'Billing',
  },
  { path: '/audit', source: 'pages/audit.tsx', load: () => import('./pages/audit.tsx'), title: 'Audit', menu: 'Audit' },
  {
    path: '/hosts',
    source: 'pages/hosts.tsx',
    load: () => import('./pages/hosts.tsx'),
    title: 'Hosts',
    menu: 'Hosts',
    operator: true,
  },
  {
    path: '/accounts',
    source: 'pages/accounts.tsx',
    load: () => import('./pages/accounts.tsx'),
    title: 'Accounts',
    menu: 'Accounts',
    operator: true,
  },
  { path: '/accounts/:id', source: 'pages/account.tsx', load: () => import('./pages/account.tsx'), title: 'Account' },
  {
    path: '/rates',
    source: 'pages/rates.tsx',
    load: () => import('./pages/rates.tsx'),
    title: 'Rates',
    menu: 'Rates',
    operator: true,
  },
]

/** The page at a path and what stands for its colons; undefined when there is none. */
export function findRoute(path: string): { route: Route; params: Record<string, string> } | undefined {
  const parts = path.split('/')
  for (const route of ROUTES) {
    const wanted = route.path.split('/')
    if (wanted.length !== parts.length) continue
    const params: Record<string, string> = {}
    const fits = wanted.every((part, index) => {
      const given = parts[index] ?? ''
      if (!part.startsWith(':')) return part === given
      try {
        params[part.slice(1)] = decodeURIComponent(given)
      } catch {
        return false
      }
      return given !== ''
    })
    if (fits) return { route, params }
  }
  return undefined
}
