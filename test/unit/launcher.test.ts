import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, existsSync, openSync, readFileSync } from 'node:fs'
import { mkdir, mkdtemp, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { afterEach, beforeEach, expect, test } from 'vitest'

const LAUNCHER = new URL('../../berth.mjs', import.meta.url)

let path = ''
const supervising: ChildProcess[] = []

beforeEach(async () => {
  path = await mkdtemp(join(tmpdir(), 'berth-launcher-'))
})
afterEach(async () => {
  for (const child of supervising.splice(0)) {
    if (child.exitCode !== null || child.signalCode !== null) continue
    child.kill('SIGKILL')
    await once(child, 'exit')
  }
  const log = existsSync(join(path, 'log')) ? readFileSync(join(path, 'log'), 'utf8') : ''
  for (const [, pid] of log.matchAll(/ starts (\d+)$/gm)) {
    if (existsSync(`/proc/${pid}`) && readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes(path)) {
      process.kill(Number(pid), 'SIGKILL')
    }
  }
  await rm(path, { recursive: true, force: true })
})

/** Runs the launcher to its end. */
function launch(parameters: string[], environment: Record<string, string> = {}) {
  return spawnSync(process.execPath, [LAUNCHER.pathname, ...parameters], {
    encoding: 'utf8',
    env: { PATH: process.env.PATH, BERTH_DATA: path, ...environment },
  })
}

test('an unknown verb is a usage error that names the known ones', () => {
  const { status, stderr } = launch(['strat'])
  expect(status).toBe(2)
  expect(stderr).toMatch(/^unknown: strat\. Expected one of start, .*units\n$/)
})

test('one side alone wants to be told the database that both share', () => {
  for (const side of ['gateway', 'vmhost']) {
    const { status, stderr } = launch(['start', side])
    expect(status).toBe(2)
    expect(stderr).toMatch(/^DATABASE_URL: expected .*\n$/)
  }
})

test('berth.env is read, under the environment; a line that is no setting stops the start with file and line', async () => {
  await writeFile(join(path, 'berth.env'), '# drain\n\nexport BERTH_DRAIN="5m"\n')
  expect(launch(['units']).stdout).toMatch(/^TimeoutStopSec=570$/m)
  expect(launch(['units'], { BERTH_DRAIN: '10s' }).stdout).toMatch(/^TimeoutStopSec=280$/m)
  await writeFile(join(path, 'berth.env'), 'BERTH_DRAIN=5m\nBERTH DOMAIN: x\n')
  const { status, stderr } = launch(['units'])
  expect(status).toBe(2)
  expect(stderr).toBe(`${path}/berth.env:2: expected NAME=value, found: BERTH DOMAIN: x\n`)
})

test('units are printed with the settings named that no unit would see', async () => {
  await writeFile(join(path, 'berth.env'), 'BERTH_SIGNUP=open\n')
  expect(launch(['units'], { BERTH_SIGNUP: 'open' }).stderr).toBe('')
  const { stderr } = launch(['units'], {
    BERTH_SIGNUP: 'open',
    BERTH_DOMAIN: 'berth.example',
    DATABASE_URL: 'postgres://d/b',
  })
  expect(stderr).toBe(
    `BERTH_DOMAIN, DATABASE_URL: set here alone, where a unit does not see them; write them into ${path}/berth.env\n`,
  )
})

test('units leave machines running when a unit is restarted; with a shared database there is one for each side', () => {
  const one = launch(['units']).stdout
  expect(one.match(/^# .*$/gm)).toEqual(['# /etc/systemd/system/berth.service', expect.any(String), expect.any(String)])
  expect(one).toMatch(/^KillMode=process$/m)
  const two = launch(['units'], { DATABASE_URL: 'postgres://db/berth' }).stdout
  expect(two.match(/^# \/.*$/gm)).toEqual([
    '# /etc/systemd/system/berth-gateway.service',
    '# /etc/systemd/system/berth-vmhost.service',
  ])
  expect(two.match(/^ExecStart=.* (gateway|vmhost)$/gm)?.length).toBe(2)
})

test('a second start on the same data directory names the one that runs', async () => {
  const file = join(path, 'launcher-gateway.lock')
  await writeFile(file, '4242\n')
  const descriptor = openSync(file, 'r+')
  try {
    expect(spawnSync('flock', ['-n', '-x', '3'], { stdio: ['ignore', 'ignore', 'ignore', descriptor] }).status).toBe(0)
    const { status, stderr } = launch(['start'])
    expect(status).toBe(1)
    expect(stderr).toBe(`Berth is already running on ${path}, pid 4242\n`)
  } finally {
    closeSync(descriptor)
  }
})

test('the gateway has what it needs of a backup that was restored where its user has another number', async () => {
  const gateway = join(path, 'gateway')
  await mkdir(gateway)
  for (const name of ['gateway/ca.pem', 'secret.key']) await writeFile(join(path, name), Buffer.alloc(32))
  spawnSync('chown', ['-R', '4242:4242', path])
  const program = `import { prepareGateway } from ${JSON.stringify(LAUNCHER.href)}; prepareGateway(${JSON.stringify(path)})`
  const { status, stderr } = spawnSync(process.execPath, ['--input-type=module', '-e', program], { encoding: 'utf8' })
  expect({ status, stderr }).toEqual({ status: 0, stderr: '' })
  const uid = Number(spawnSync('id', ['-u', 'berth'], { encoding: 'utf8' }).stdout)
  for (const name of ['gateway', 'gateway/ca.pem', 'secret.key']) {
    expect({ name, uid: (await stat(join(path, name))).uid }).toEqual({ name, uid })
  }
})

/** What children do, by name: each writes lines `<name> <event>` to the log. */
const CHILD = `
import { appendFileSync, readFileSync } from 'node:fs'
const [name, behaviour] = process.argv.slice(2)
const say = (event) => appendFileSync(process.env.LOG, name + ' ' + event + '\\n')
say('starts ' + process.pid)
if (behaviour === 'bad-setting') process.exit(2)
if (behaviour === 'crashing') process.exit(1)
process.on('SIGPWR', () => {
  say('told of the power')
  if (behaviour === 'stubborn') return
  setInterval(() => {
    if (behaviour === 'last' && !readFileSync(process.env.LOG, 'utf8').includes('vmhost ends')) return
    say('ends')
    process.exit(0)
  }, 20)
})
process.on('SIGTERM', () => {
  say('told')
  if (['stubborn', 'drains', 'last'].includes(behaviour)) return
  setTimeout(() => { say('ends'); process.exit(0) }, behaviour === 'slow' ? 300 : 0)
})
setInterval(() => {}, 1000)
process.send({ ready: true, ssh: 'ssh ' + name })
`

/** A process with a supervisor and the given children, in this order. @param system as systemd has it */
async function supervise(
  children: { name: string; behaviour: string; stopMs?: number; powerMs?: number }[],
  system = 'running',
) {
  const script = join(path, 'child.mjs')
  const log = join(path, 'log')
  // Like systemctl, it fails for every answer but one.
  await writeFile(join(path, 'systemctl'), `#!/bin/sh\necho ${system}\ntest ${system} = running\n`, { mode: 0o755 })
  await writeFile(script, CHILD)
  await writeFile(log, '')
  const program = `
    import { appendFileSync } from 'node:fs'
    const { Supervisor } = await import(${JSON.stringify(LAUNCHER.href)})
    const supervisor = new Supervisor({ ...process.env, LOG: ${JSON.stringify(log)} })
    supervisor.handleSignals()
    const say = (event) => appendFileSync(${JSON.stringify(log)}, 'supervisor ' + event + '\\n')
    try {
      for (const { name, behaviour, powerMs, stopMs = 600000 } of ${JSON.stringify(children)}) {
        const facts = await supervisor.run({ name, parameters: [${JSON.stringify(script)}, name, behaviour], stopMs, powerMs, whenOrphaned: "process.kill(process.pid, 'SIGTERM')" })
        say('heard ' + facts.ssh)
      }
    } catch (error) {
      say('failed ' + error.status + ' ' + error.message)
      await supervisor.stop()
      process.exit(error.status)
    }
    say('serves')
    process.exit(await supervisor.ended)`
  const child = spawn(process.execPath, ['--input-type=module', '-e', program], {
    stdio: 'ignore',
    env: { ...process.env, PATH: `${path}:${process.env.PATH ?? ''}` },
  })
  supervising.push(child)
  const lines = () => readFileSync(log, 'utf8').trim().split('\n')
  const until = async (pattern: RegExp, count = 1) => {
    for (;;) {
      const found = lines().filter((line) => pattern.test(line))
      if (found.length >= count) return found
      await setTimeout(20)
    }
  }
  const pidOf = (name: string) =>
    Number(
      lines()
        .findLast((line) => line.startsWith(`${name} starts`))
        ?.split(' ')[2],
    )
  return { child, lines, until, pidOf, log }
}

test('children are ended in the reverse order of their start, each when the one before is gone', async () => {
  const { child, until, lines } = await supervise([
    { name: 'postgres', behaviour: 'good' },
    { name: 'vmhost', behaviour: 'slow' },
    { name: 'gateway', behaviour: 'slow' },
  ])
  await until(/supervisor serves/)
  child.kill('SIGTERM')
  const [status] = await once(child, 'exit')
  expect(status).toBe(0)
  expect(lines().slice(-6)).toEqual([
    ...['gateway told', 'gateway ends', 'vmhost told', 'vmhost ends', 'postgres told', 'postgres ends'],
  ])
})

/** A gateway that ends no sooner than the vmhost beside it. */
const HASTY = [
  { name: 'postgres', behaviour: 'good' },
  { name: 'vmhost', behaviour: 'good', powerMs: 600_000 },
  { name: 'gateway', behaviour: 'last', powerMs: 600_000 },
]

test.each([
  ['SIGPWR', 'running'],
  ['SIGTERM', 'stopping'],
] as const)(
  'a server that goes down (%s, systemd says %s) has its machines told beside the gateway, which drains nothing; Postgres ends last',
  async (signal, system) => {
    const { child, until, lines } = await supervise(HASTY, system)
    await until(/supervisor serves/)
    child.kill(signal)
    const [status] = await once(child, 'exit')
    expect(status).toBe(0)
    const [served, ...end] = lines().slice(-7)
    expect(served).toBe('supervisor serves')
    expect(end.filter((line) => line.endsWith('told of the power')).sort()).toEqual([
      'gateway told of the power',
      'vmhost told of the power',
    ])
    expect(end.slice(-3)).toEqual(['gateway ends', 'postgres told', 'postgres ends'])
    expect(end).toContain('vmhost ends')
  },
)

test('SIGPWR cuts a drain short that has begun', async () => {
  const children = HASTY.map((one) => (one.name === 'gateway' ? { ...one, behaviour: 'drains' } : one))
  const { child, until, lines } = await supervise(children)
  await until(/supervisor serves/)
  child.kill('SIGTERM')
  await until(/gateway told$/)
  child.kill('SIGPWR')
  const [status] = await once(child, 'exit')
  expect(status).toBe(0)
  expect(lines()).toEqual(expect.arrayContaining(['gateway told of the power', 'vmhost told of the power']))
  expect(lines().slice(-2)).toEqual(['postgres told', 'postgres ends'])
})

test('when the server goes down, a gateway that hangs is ended when its time is over, which is short', async () => {
  const { child, until, lines } = await supervise([
    { name: 'postgres', behaviour: 'good' },
    { name: 'gateway', behaviour: 'stubborn', powerMs: 300 },
  ])
  await until(/supervisor serves/)
  child.kill('SIGPWR')
  expect((await once(child, 'exit'))[0]).toBe(0)
  expect(lines().slice(-2)).toEqual(['postgres told', 'postgres ends'])
})

test('a child that is killed is started again, and again', async () => {
  const { until, pidOf } = await supervise([{ name: 'gateway', behaviour: 'good' }])
  await until(/supervisor serves/)
  process.kill(pidOf('gateway'), 'SIGKILL')
  await until(/gateway starts/, 2)
  process.kill(pidOf('gateway'), 'SIGKILL')
  await until(/gateway starts/, 3)
})

test('a bad setting ends the start at once with 2, and what ran already is stopped', async () => {
  const { child, lines } = await supervise([
    { name: 'postgres', behaviour: 'good' },
    { name: 'gateway', behaviour: 'bad-setting' },
  ])
  const [status] = await once(child, 'exit')
  expect(status).toBe(2)
  expect(lines().filter((line) => line.startsWith('gateway starts')).length).toBe(1)
  expect(lines().at(-1)).toBe('postgres ends')
})

test('a child that never gets ready is tried three times', async () => {
  const { child, lines } = await supervise([{ name: 'gateway', behaviour: 'crashing' }])
  const [status] = await once(child, 'exit')
  expect(status).toBe(1)
  expect(lines().filter((line) => line.startsWith('gateway starts')).length).toBe(3)
  expect(lines().at(-1)).toBe('supervisor failed 1 the gateway ended with status 1, 3 times before it was ready')
})

test('a child that will not end is ended when its time is over', async () => {
  const { child, until, pidOf } = await supervise([{ name: 'gateway', behaviour: 'stubborn', stopMs: 300 }])
  await until(/supervisor serves/)
  const pid = pidOf('gateway')
  child.kill('SIGTERM')
  expect((await once(child, 'exit'))[0]).toBe(0)
  expect(existsSync(`/proc/${pid}`)).toBe(false)
})

test('a second signal tells the child that is ending once more', async () => {
  const { child, until } = await supervise([{ name: 'gateway', behaviour: 'stubborn', stopMs: 20_000 }])
  await until(/supervisor serves/)
  child.kill('SIGTERM')
  await until(/gateway told/)
  // Within a second it would be taken for npm's echo of the first.
  await setTimeout(1100)
  child.kill('SIGTERM')
  await until(/gateway told/, 2)
})

test('children end in order when their supervisor is killed', async () => {
  const { child, until } = await supervise([{ name: 'gateway', behaviour: 'good' }])
  await until(/supervisor serves/)
  child.kill('SIGKILL')
  await until(/gateway ends/)
})
