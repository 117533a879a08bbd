/**
 * Berth's side of the HTTPS benchmark: the gateway's own server with a session looked up for each request, one
 * machine (the origin) behind it, access log on, as it runs in a gateway. Arguments: port, origin port, certificate,
 * key, access log.
 */
import { readFileSync } from 'node:fs'
import { createSecureContext } from 'node:tls'
import { accessLog } from '../../gateway/https/access-log.ts'
import type { Route } from '../../gateway/https/proxy/seams.ts'
import { startHttps } from '../../gateway/https/server.ts'
import { createLog } from '../../gateway/log.ts'

const [port, originPort, certificateFile, keyFile, logFile] = process.argv.slice(2)
const context = createSecureContext({
  cert: readFileSync(String(certificateFile)),
  key: readFileSync(String(keyFile)),
})
const route: Route = { machineId: 1, name: 'demo', address: '127.0.0.1', primaryPort: Number(originPort), awake: true }
const sessions = new Map([['abc', { user: '7', email: 'bench@example.com' }]])

await startHttps({
  settings: {
    domain: 'localhost',
    machineDomain: 'localhost',
    https: [{ host: '127.0.0.1', port: Number(port) }],
  },
  log: createLog('warn'),
  certificates: { contextFor: async () => context, expiryAt: () => new Map() },
  access: accessLog(logFile),
  controlHost: (_request, response) => response.end('control'),
  resolve: () => route,
  authorize: ({ fields }) => {
    for (const { name, value } of fields) {
      if (name !== 'cookie') continue
      const session = sessions.get(/(?:^|;\s*)session=([^;]*)/.exec(value)?.[1] ?? '')
      if (session) return { allow: true, by: 'cookie', identity: session, grant: 'bench' }
    }
    return { allow: false, answer: { status: 401, fields: [['WWW-Authenticate', 'Bearer']] } }
  },
})
process.send?.('ready')
