import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Agent, request } from 'undici'
import { freePort } from '../../../ssh/relay/fixtures.ts'
import { makeCertificate } from '../../testing/certificate.ts'

export type Pebble = {
  directoryUrl: string
  /** trusts the directory's own certificate */
  dispatcher: Agent
  /** PEM of the root that it issues under; another one each time it starts */
  root(): Promise<string>
  /** requests to the directory, as it logs them: `POST /order-plz` */
  requests(): string[]
  [Symbol.asyncDispose](): Promise<void>
}

/** In percent: good nonces that Pebble refuses, to see that clients come again with another. */
const NONCES_REFUSED = 30

/**
 * The real Pebble, in strict mode, refusing good nonces at random.
 * @param ports where its validations come to
 * @param resolver `address:port` of the name server that it asks
 * @param certificateLifeS of what it issues; five years unless given
 */
export async function startPebble(options: {
  httpPort: number
  tlsPort: number
  resolver: string
  certificateLifeS?: number
}): Promise<Pebble> {
  const directory = mkdtempSync(join(tmpdir(), 'berth-pebble-'))
  const files = { cert: join(directory, 'cert.pem'), key: join(directory, 'key.pem') }
  makeCertificate(['IP:127.0.0.1'], files)
  const [port, managementPort] = [await freePort(), await freePort()]
  const config = {
    pebble: {
      listenAddress: `127.0.0.1:${port}`,
      managementListenAddress: `127.0.0.1:${managementPort}`,
      certificate: files.cert,
      privateKey: files.key,
      httpPort: options.httpPort,
      tlsPort: options.tlsPort,
      certificateValidityPeriod: options.certificateLifeS ?? 157_766_400,
      domainBlocklist: ['blocked.example'],
    },
  }
  writeFileSync(join(directory, 'config.json'), JSON.stringify(config))
  const child = spawn(
    'pebble',
    ['-strict', '-config', join(directory, 'config.json'), '-dnsserver', options.resolver],
    {
      stdio: ['ignore', 'pipe', 'inherit'],
      env: {
        ...process.env,
        PEBBLE_WFE_NONCEREJECT: String(NONCES_REFUSED),
        PEBBLE_VA_NOSLEEP: '1',
        PEBBLE_AUTHZREUSE: '0',
      },
    },
  )
  const exited = once(child, 'exit')
  let log = ''
  const ready = new Promise<void>((resolve, reject) => {
    child.stdout.on('data', (bytes: Buffer) => {
      log += bytes
      if (log.includes('ACME directory available')) resolve()
    })
    exited.then(() => reject(new Error(`pebble ended:\n${log}`)), reject)
  })
  await ready
  const dispatcher = new Agent({ connect: { ca: readFileSync(files.cert, 'utf8') } })
  return {
    directoryUrl: `https://127.0.0.1:${port}/dir`,
    dispatcher,
    async root() {
      const { body } = await request(`https://127.0.0.1:${managementPort}/roots/0`, { dispatcher })
      return await body.text()
    },
    requests: () => [...log.matchAll(/ (GET|HEAD|POST) (\/\S+) -> /g)].map(([, method, path]) => `${method} ${path}`),
    async [Symbol.asyncDispose]() {
      child.kill('SIGKILL')
      await exited
      await dispatcher.destroy()
      rmSync(directory, { recursive: true, force: true })
    },
  }
}
