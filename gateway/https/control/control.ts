import type { Http2Bindings, HttpBindings } from '@hono/node-server'
import type { Context, Hono } from 'hono'
import type { Sql } from '../../../migrations/connect.ts'
import type { WebSession } from '../../accounts/web-sessions.ts'
import type { App, RunLine } from '../../app.ts'
import type { Log } from '../../log.ts'
import type { Settings } from '../../settings.ts'
import type { Site } from '../host.ts'
import type { MachineRoute } from '../machines/routes.ts'
import type { Installation } from './pages.ts'
import type { Rate } from './rate.ts'

export type ControlOptions = {
  gateway: App
  runLine: RunLine
  sql: Sql
  log: Log
  installation: Installation
  /** keys the hashes of mailed codes */
  codeSecret: Buffer
  /** PEM of Berth's own root, where certificates are its */
  root: string | undefined
  settings: Pick<Settings, 'domain' | 'machineDomain' | 'ports'>
  /** ports of the HTTPS listeners */
  listenPorts: ReadonlySet<number>
  /** the machine behind a host */
  find(site: Exclude<Site, { kind: 'control' }>): MachineRoute | undefined | Promise<MachineRoute | undefined>
  /** whether DNS still has a domain that somebody brought belong to the machine's account and lead here */
  isHeld(host: string, machineId: number): Promise<boolean>
}

export type ControlEnv = {
  Bindings: HttpBindings | Http2Bindings
  Variables: { session: WebSession | undefined; address: string }
}
export type ControlContext = Context<ControlEnv>

/** What the parts of the control host are handed. */
export type Control = ControlOptions & {
  app: Hono<ControlEnv>
  /** attempts that cost a mail, or guess at a secret */
  rate: Rate
  /** sends a page with the fields that all pages have */
  show(context: ControlContext, status: number, text: string): Response
  /** a page for people, JSON for programs */
  refuse(context: ControlContext, problem: { status: number; code: string; title: string; detail: string }): Response
  /** for whoever is not signed in: people are sent to do so and come back here, programs are told */
  signInFirst(context: ControlContext): Response
  signIn(context: ControlContext, token: string): void
  /**
   * Sends a browser on that has just sent a form: to one of these pages, or to where a machine is shown.
   * @param where a path that is safe, or an address of ours
   * @param title what the form did
   */
  onward(context: ControlContext, where: string, title: string): Response
}
