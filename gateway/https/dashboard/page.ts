import { html } from '../pages/html.ts'
import type { DashboardBuild } from './build.ts'

/** What the script is told of where it is and who is signed in; web/src/installation.ts reads it. */
export type Told = {
  domain: string
  lobby: string
  /** with NAME in the place of a machine's name */
  machineUrl: string
  account: number
  who: string
  isOperator: boolean
  /** notices that nobody of the account has read */
  notices: number
}

/** The page of the dashboard: its script draws everything. Without script there is the list at `/list`. */
export function dashboardPage(build: DashboardBuild, route: DashboardBuild['routes'][number], told: Told): string {
  const scripts = [...new Set(route.scripts)].filter((path) => path !== build.script)
  const styles = [...new Set([...build.styles, ...route.styles])]
  return html`<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="robots" content="noindex">
<meta name="berth" content="${JSON.stringify(told)}">
<title>Berth at ${told.domain}</title>
<link rel="icon" href="${build.icon}">
${styles.map((path) => html`<link rel="stylesheet" href="${path}">\n`)}<script type="module" src="${build.script}"></script>
${scripts.map((path) => html`<link rel="modulepreload" href="${path}">\n`)}<link rel="preload" href="/events?once" as="fetch" crossorigin>
${build.fonts.map((path) => html`<link rel="preload" href="${path}" as="font" type="font/woff2" crossorigin>\n`)}<noscript><meta http-equiv="refresh" content="0; url=/list"></noscript>
</head>
<body>
<div id="app"></div>
<noscript><p>These pages need their script. <a href="/list">The list of machines</a> does without.</p></noscript>
</body>
</html>
`.text
}

/** Nothing but what comes from this host, and no script or style that stands in a page or is made in one. */
export const POLICY = [
  "default-src 'none'",
  "script-src 'self'",
  "style-src 'self'",
  "img-src 'self'",
  "font-src 'self'",
  "connect-src 'self'",
  "form-action 'self'",
  "frame-ancestors 'none'",
  "base-uri 'none'",
].join('; ')
