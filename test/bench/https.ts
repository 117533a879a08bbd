/**
 * HTTPS benchmarks: Berth's proxy beside nginx (auth_request) and Caddy (forward_auth), in turn, on one machine.
 * `node test/bench/https.ts [rounds] [seconds]`. Needs Debian's nginx-light, caddy and wrk; what is not installed is
 * named as missing. Prints JSON on its last line. CPU is user plus system of every process of a side, its auth server
 * too; nginx answers the authorisation itself, the cheapest there is.
 */
import { type ChildProcess, execFileSync, fork, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { connect as connectHttp2 } from 'node:http2'
import { createServer } from 'node:net'
import { cpus, release, tmpdir } from 'node:os'
import { join } from 'node:path'
import { connect, type TLSSocket } from 'node:tls'
import { makeCertificate } from '../../gateway/https/testing/certificate.ts'
import { nodeFlags, type Spread, spread } from './ssh-lab.ts'

/** Ports, and the files of the certificate. */
type Rival = { port: number; auth: number; origin: number; cert: string; key: string }
type Side = { name: string; port: number; pids: () => number[] }

const rounds = Number(process.argv[2] ?? 5)
const seconds = Number(process.argv[3] ?? 4)
const directory = mkdtempSync(join(tmpdir(), 'berth-bench-'))
const children: ChildProcess[] = []
const where: Record<string, string> = {
  cpu: cpus()[0]?.model.trim() ?? 'unknown',
  cores: String(cpus().length),
  kernel: release(),
  node: process.version,
}
const figures: Record<string, Spread> = {}

try {
  await main()
} finally {
  for (const child of children) child.kill()
  rmSync(directory, { recursive: true, force: true })
}

async function main(): Promise<void> {
  const [origin = 0, originTls = 0, berth = 0, nginx = 0, auth = 0, caddy = 0] = await freePorts(6)
  const [cert, key] = [join(directory, 'cert.pem'), join(directory, 'key.pem')]
  makeCertificate(['DNS:demo.localhost', 'IP:127.0.0.1'], { cert, key })
  await script('https-origin.ts', origin, originTls, cert, key)
  const gateway = await script('https-berth.ts', berth, origin, cert, key, join(directory, 'access.log'))
  const sides: Side[] = [
    { name: 'berth', port: berth, pids: () => [gateway.pid ?? 0] },
    ...(await startNginx({ port: nginx, auth, origin, cert, key })),
    ...(await startCaddy({ port: caddy, auth, origin, cert, key })),
  ]
  for (const [measure, path] of [
    ['small', '/'],
    ['large', '/large'],
  ] as const) {
    const costs = new Map<string, number[]>(sides.map(({ name }) => [name, []]))
    // The first round warms up and is not counted.
    for (let round = 0; round <= rounds; round++) {
      for (const side of sides) {
        const cost = cpuPerRequestUs(side, path, round === 0 ? seconds * 3 : seconds)
        if (round > 0) costs.get(side.name)?.push(cost)
      }
    }
    const own = costs.get('berth') ?? []
    for (const [name, values] of costs) {
      figures[`${measure}, ${name}, us CPU a request`] = spread(values)
      if (name === 'berth') continue
      figures[`${measure}, CPU a request to ${name}`] = spread(
        own.map((value, at) => value / (values[at] ?? Number.NaN)),
      )
    }
  }
  figures['unread over HTTP/1.1, MiB'] = spread([await unread(berth, gateway.pid ?? 0, 'http/1.1')])
  figures['unread over HTTP/2, MiB'] = spread([await unread(berth, gateway.pid ?? 0, 'h2')])
  await latency(berth, originTls)
  await idleTunnels(berth, gateway.pid ?? 0)
  console.log(JSON.stringify({ title: 'HTTPS', where, figures }))
}

function cpuPerRequestUs(side: Side, path: string, duration: number): number {
  const before = cpuTicks(side.pids())
  const out = execFileSync('wrk', [
    '-t1',
    '-c32',
    `-d${duration}`,
    '-H',
    'Cookie: session=abc',
    `https://127.0.0.1:${side.port}${path}`,
  ]).toString()
  const after = cpuTicks(side.pids())
  if (/Non-2xx|Socket errors: connect [1-9]/.test(out)) throw new Error(`${side.name}: ${out}`)
  return ((after - before) * 10_000) / Number(/(\d+) requests in/.exec(out)?.[1])
}

/** 5,000 tunnels, one message each, then quiet; meanwhile a new request. */
async function idleTunnels(port: number, pid: number): Promise<void> {
  const count = 5000
  const before = pssKiB(pid)
  const sockets: TLSSocket[] = []
  for (let batch = 0; batch < count / 20; batch++) {
    sockets.push(...(await Promise.all(Array.from({ length: 20 }, () => tunnel(port)))))
  }
  await new Promise((resolve) => setTimeout(resolve, 60_000))
  figures['idle WebSockets, KiB each'] = spread([(pssKiB(pid) - before) / count])
  const times: number[] = []
  for (let n = 0; n < 10; n++) {
    const startedAt = performance.now()
    const { socket } = await request(port)
    times.push(performance.now() - startedAt)
    socket.destroy()
  }
  figures['new request beside them, ms'] = spread(times)
  for (const socket of sockets) socket.destroy()
}

async function tunnel(port: number): Promise<TLSSocket> {
  const socket = await dial(port)
  socket.write(
    'GET /tunnel HTTP/1.1\r\nHost: demo.localhost\r\nCookie: session=abc\r\nOrigin: https://demo.localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n',
  )
  await once(socket, 'data')
  socket.write('frame')
  await once(socket, 'data')
  return socket
}

/** 64 MiB queued at the origin, a client that does not read for 10 s. */
async function unread(port: number, pid: number, protocol: 'http/1.1' | 'h2'): Promise<number> {
  const before = rssKiB(pid)
  let peak = before
  let end: () => void
  if (protocol === 'h2') {
    const session = connectHttp2(`https://127.0.0.1:${port}`, {
      rejectUnauthorized: false,
      servername: 'demo.localhost',
    })
    const stream = session.request({ ':path': '/queued', ':authority': 'demo.localhost', cookie: 'session=abc' })
    stream.on('response', () => stream.pause())
    stream.on('error', () => {})
    end = () => session.destroy()
  } else {
    const socket = await dial(port)
    socket.pause()
    socket.write('GET /queued HTTP/1.1\r\nHost: demo.localhost\r\nCookie: session=abc\r\n\r\n')
    end = () => socket.destroy()
  }
  for (const until = Date.now() + 10_000; Date.now() < until; ) {
    await new Promise((resolve) => setTimeout(resolve, 50))
    peak = Math.max(peak, rssKiB(pid))
  }
  end()
  return (peak - before) / 1024
}

/** Open loop of 1,000 requests/s through the gateway and straight to the origin over TLS, in turn. */
async function latency(gateway: number, origin: number): Promise<void> {
  const through: number[][] = []
  const direct: number[][] = []
  for (let round = 0; round < 3; round++) {
    through.push(await openLoop(gateway))
    direct.push(await openLoop(origin))
  }
  for (const [name, share] of [
    ['median', 0.5],
    ['99th percentile', 0.99],
  ] as const) {
    const at = (times: number[]) => times[Math.floor(times.length * share)] ?? Number.NaN
    figures[`added latency, ${name}, ms`] = spread(through.map((times, round) => at(times) - at(direct[round] ?? [])))
  }
}

async function openLoop(port: number): Promise<number[]> {
  const connections = await Promise.all(Array.from({ length: 32 }, () => request(port)))
  const times: number[] = []
  const waiting: number[] = []
  const give = (connection: (typeof connections)[number], due: number) => {
    connection.ask().then(() => {
      times.push(performance.now() - due)
      const next = waiting.shift()
      if (next !== undefined) give(connection, next)
    })
  }
  const startedAt = performance.now()
  for (let sent = 0; sent < 10_000; sent++) {
    const due = startedAt + sent
    while (performance.now() < due) await new Promise((resolve) => setImmediate(resolve))
    // A request that finds every connection busy waits, and its wait counts: that is what an open loop is for.
    const free = connections.find(({ busy }) => !busy)
    if (free) give(free, due)
    else waiting.push(due)
  }
  while (times.length < 10_000) await new Promise((resolve) => setTimeout(resolve, 10))
  for (const { socket } of connections) socket.destroy()
  return times.sort((a, b) => a - b)
}

async function request(port: number) {
  const socket = await dial(port)
  // Always listening: two records that arrive together are two events of one turn.
  let bytes = 0
  let whole = () => {}
  socket.on('data', (chunk: Buffer) => {
    bytes += chunk.length
    if (bytes >= 1024) whole()
  })
  const connection = {
    socket,
    busy: false,
    async ask() {
      connection.busy = true
      bytes = 0
      const answered = new Promise<void>((resolve) => {
        whole = resolve
      })
      socket.write('GET / HTTP/1.1\r\nHost: demo.localhost\r\nCookie: session=abc\r\n\r\n')
      await answered
      connection.busy = false
    },
  }
  await connection.ask()
  return connection
}

async function dial(port: number): Promise<TLSSocket> {
  const socket = connect({
    host: '127.0.0.1',
    port,
    servername: 'demo.localhost',
    rejectUnauthorized: false,
    ALPNProtocols: ['http/1.1'],
  })
  socket.on('error', () => {})
  await once(socket, 'secureConnect')
  return socket
}

async function startNginx(at: Rival): Promise<Side[]> {
  const upstream = (name: string, port: number) =>
    `upstream ${name} { server 127.0.0.1:${port}; keepalive 64; keepalive_requests 100000000; }`
  writeFileSync(
    join(directory, 'nginx.conf'),
    `daemon off; worker_processes 1; pid ${directory}/nginx.pid; error_log ${directory}/nginx.error;
events { worker_connections 20000; }
http { access_log ${directory}/nginx.access; keepalive_requests 100000000;
${['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map((what) => `${what}_temp_path ${directory}/${what};`).join(' ')}
${upstream('origin', at.origin)} ${upstream('auth', at.auth)}
map $cookie_session $known { default 0; abc 1; }
server { listen 127.0.0.1:${at.auth}; access_log off; location / { if ($known) { return 204; } return 401; } }
server { listen 127.0.0.1:${at.port} ssl; ssl_certificate ${at.cert}; ssl_certificate_key ${at.key}; ssl_protocols TLSv1.2 TLSv1.3;
 location = /_auth { internal; proxy_pass http://auth; proxy_pass_request_body off; proxy_set_header Content-Length "";
  proxy_http_version 1.1; proxy_set_header Connection ""; }
 location / { auth_request /_auth; proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection "";
  proxy_set_header Host $host; proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Proto https; } } }
`,
  )
  const child = rival('nginx', ['-p', directory, '-c', join(directory, 'nginx.conf')])
  if (!child) return []
  await accepts(at.port)
  return [{ name: 'nginx', port: at.port, pids: () => tree(child.pid ?? 0) }]
}

/** Caddy asks the same auth server as nginx does; its cost is small beside Caddy's and is left out, in Caddy's favour. */
async function startCaddy(at: Rival): Promise<Side[]> {
  writeFileSync(
    join(directory, 'Caddyfile'),
    `{
 admin off
 auto_https off
 default_sni demo.localhost
}
https://:${at.port} {
 bind 127.0.0.1
 tls ${at.cert} ${at.key}
 log {
  output file ${directory}/caddy.access
 }
 forward_auth 127.0.0.1:${at.auth} {
  uri /
 }
 reverse_proxy 127.0.0.1:${at.origin}
}
`,
  )
  const child = rival('caddy', ['run', '--config', join(directory, 'Caddyfile'), '--adapter', 'caddyfile'])
  if (!child) return []
  await accepts(at.port)
  return [{ name: 'caddy', port: at.port, pids: () => tree(child.pid ?? 0) }]
}

function rival(command: string, args: string[]): ChildProcess | undefined {
  try {
    execFileSync('which', [command], { stdio: 'ignore' })
  } catch {
    where[command] = 'not installed'
    return undefined
  }
  where[command] = execFileSync('dpkg-query', ['-W', command]).toString().split('\t')[1]?.trim() ?? 'unknown'
  const child = spawn(command, args, { stdio: 'ignore', env: { ...process.env, HOME: directory } })
  children.push(child)
  return child
}

async function script(file: string, ...args: (string | number)[]): Promise<ChildProcess> {
  const child = fork(new URL(file, import.meta.url), args.map(String), { execArgv: nodeFlags })
  children.push(child)
  await once(child, 'message')
  return child
}

async function accepts(port: number): Promise<void> {
  for (let tries = 0; tries < 200; tries++) {
    try {
      ;(await dial(port)).destroy()
      return
    } catch {
      await new Promise((resolve) => setTimeout(resolve, 50))
    }
  }
  throw new Error(`nothing listens on ${port}`)
}

async function freePorts(count: number): Promise<number[]> {
  const servers = await Promise.all(
    Array.from({ length: count }, async () => {
      const server = createServer()
      server.listen(0, '127.0.0.1')
      await once(server, 'listening')
      return server
    }),
  )
  return servers.map((server) => {
    const address = server.address()
    server.close()
    return address && typeof address === 'object' ? address.port : 0
  })
}

function tree(pid: number): number[] {
  const of = (path: string) => readFileSync(path, 'utf8').trim().split(/\s+/).filter(Boolean).map(Number)
  const below = readdirSync(`/proc/${pid}/task`).flatMap((task) => of(`/proc/${pid}/task/${task}/children`))
  return [pid, ...below.flatMap(tree)]
}

function cpuTicks(pids: number[]): number {
  let ticks = 0
  for (const pid of pids) {
    const fields = readFileSync(`/proc/${pid}/stat`, 'utf8')
      .replace(/^.*\) /, '')
      .split(' ')
    ticks += Number(fields[11]) + Number(fields[12])
  }
  return ticks
}

function pssKiB(pid: number): number {
  return Number(/^Pss:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8'))?.[1])
}

function rssKiB(pid: number): number {
  return Number(/^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1])
}
