import { PassThrough } from 'node:stream'
import type { DesiredState } from '../../../migrations/schema.ts'
import { FIRST_SESSION, SESSION_NAME } from '../../../web/terminal/protocol.ts'
import { lobbyLine } from '../../commands/machine-document.ts'
import { isReady, type Machine } from '../../machines.ts'
import { MachineUnreachableError } from '../../ssh/pool/target.ts'
import { sendAsset } from '../control/asset.ts'
import type { Control, ControlContext } from '../control/control.ts'
import { nameOf } from '../control/pages.ts'
import { wantsHtml } from '../control/request.ts'
import { pageFields } from '../pages/page.ts'
import { findAsset } from './assets.ts'
import { heldSessions } from './hold.ts'
import { terminalPage } from './page.ts'

/** `/assets/HASH/NAME`: what pages load. Everybody may: it is the same for all. */
export function addAssets({ app }: Pick<Control, 'app'>): void {
  app.get('/assets/:hash/:name', async (context) => {
    const asset = await findAsset(context.req.param('hash'), context.req.param('name'))
    return asset ? sendAsset(context, asset) : context.notFound()
  })
}

/**
 * The web terminal's pages; its WebSockets come by another way (terminals.ts).
 *
 *     GET  /terminal/NAME[/SESSION]   the page; JSON for programs: the sessions there are
 *     POST /terminal/NAME/start       starts a machine that is off, or one that failed anew, and resumes a paused one
 */
export function addTerminal(control: Control): void {
  const { gateway: app, runLine, installation, refuse, signInFirst } = control
  const gone = (context: ControlContext) =>
    refuse(context, {
      status: 404,
      code: 'machine.not_found',
      title: 'No such machine',
      detail: 'Of the machines that you have over SSH, none is called that.',
    })
  /** @returns an answer instead when there is none for whoever asks */
  const machineOf = async (context: ControlContext): Promise<Machine | Response> => {
    const session = context.get('session')
    if (!session) return signInFirst(context)
    if (session.accountId === null) {
      return refuse(context, {
        status: 403,
        code: 'account.required',
        title: 'Not for guests',
        detail: `${nameOf(session)} may see pages of machines, and a terminal is more than that.`,
      })
    }
    const name = context.req.param('name') ?? ''
    // A path can say what no name is, and Postgres does not take for text.
    if (!/^[a-z0-9-]+$/.test(name)) return gone(context)
    return (await app.machines.find(name, { accountId: session.accountId })) ?? gone(context)
  }

  const show = async (context: ControlContext) => {
    const machine = await machineOf(context)
    if (machine instanceof Response) return machine
    const session = context.req.param('session') ?? FIRST_SESSION
    if (!SESSION_NAME.test(session)) {
      return refuse(context, {
        status: 404,
        code: 'session.name',
        title: 'No such session',
        detail: 'Sessions are called by up to 64 letters, digits, dots, hyphens and underscores.',
      })
    }
    if (!wantsHtml(context)) return await list(context, machine)
    const { domain } = installation
    const command = lobbyLine(app.settings, `ssh ${machine.name}`)
    for (const [name, value] of pageFields()) context.header(name, value)
    context.header('Content-Security-Policy', POLICY)
    return context.body(terminalPage({ domain, machine: machine.name, session, command }), 200, {
      'Content-Type': 'text/html; charset=utf-8',
    })
  }

  const list = async (context: ControlContext, machine: Machine) => {
    context.header('Cache-Control', 'no-store')
    try {
      const sessions = isReady(machine) ? await heldSessions(app, machine, machine) : []
      return context.json({ machine: machine.name, sessions })
    } catch (error) {
      if (!(error instanceof MachineUnreachableError)) throw error
      return refuse(context, {
        status: 503,
        code: error.code,
        title: 'Not reached',
        detail: error.message,
      })
    }
  }

  control.app.get('/terminal/:name', show)
  control.app.get('/terminal/:name/:session', show)

  control.app.post('/terminal/:name/start', async (context) => {
    const machine = await machineOf(context)
    if (machine instanceof Response) return machine
    const session = context.get('session')
    const verb = VERBS[machine.desiredState] ?? (machine.observedState === 'failed' ? 'restart' : undefined)
    if (verb === undefined) return context.json({ status: machine.observedState })
    const output = new PassThrough()
    let text = ''
    output.on('data', (bytes: Buffer) => {
      text += bytes
    })
    const caller = {
      accountId: machine.accountId,
      isOwner: session?.isOwner === true,
      keyId: null,
      fingerprint: '',
      address: context.get('address'),
      via: 'web' as const,
      sshName: '',
    }
    const stdin = new PassThrough()
    stdin.end()
    const signal = AbortSignal.timeout(START_LIMIT_MS)
    const io = { stdin, stdout: output, stderr: output, signal, env: {} }
    const status = await runLine(app, caller, `${verb} --no-wait --json ${machine.name}`, io)
    return context.body(text, status === 0 ? 200 : 422, {
      'Content-Type': 'application/json',
      'Cache-Control': 'no-store',
    })
  })
}

const START_LIMIT_MS = 30_000

/** What brings back a machine that is wanted so. */
const VERBS: Partial<Record<DesiredState, string>> = { stopped: 'start', paused: 'resume' }

/**
 * Scripts and styles of this host alone. xterm.js writes the colours and the size of a cell into style elements of its
 * own making, which have neither an address nor a fixed hash.
 */
const POLICY = [
  "default-src 'none'",
  "script-src 'self'",
  "style-src 'self' 'unsafe-inline'",
  "connect-src 'self'",
  "form-action 'none'",
  "frame-ancestors 'none'",
  "base-uri 'none'",
].join('; ')
