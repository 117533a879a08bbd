import { spawn, spawnSync } from 'node:child_process'
import { chmodSync, existsSync, mkdtempSync, readFileSync, rmSync, statSync, truncateSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { connect } from './connect.ts'
import { embeddedPaths, embeddedUrl, postmasterPid, startEmbedded, stopEmbedded } from './embedded.ts'

const PATIENT = { timeout: 60_000 }

describe('embedded Postgres', () => {
  let directory: string
  beforeEach(() => {
    directory = mkdtempSync(join(tmpdir(), 'berth-embedded-'))
    chmodSync(directory, 0o755)
  })
  afterEach(async () => {
    await stopEmbedded(directory)
    rmSync(directory, { recursive: true, force: true })
  })

  it('keeps every committed row through kill -9, listens on no port and is adopted when it already runs', async () => {
    const url = await startEmbedded(directory)
    const first = connect({ url, role: 'owner', max: 1 })
    await first`create table kept (n int)`
    await first`insert into kept select generate_series(1, 1000)`
    expect(await first`show listen_addresses`).toEqual([{ listen_addresses: '' }])
    const pid = postmasterPid(directory)
    if (!pid) throw new Error('no postmaster')
    await startEmbedded(directory)
    expect(postmasterPid(directory)).toBe(pid)
    process.kill(pid, 'SIGKILL')
    await first.end({ timeout: 1 })
    await startEmbedded(directory)
    expect(postmasterPid(directory)).not.toBe(pid)
    const second = connect({ url, role: 'owner', max: 1 })
    expect(await second`select count(*)::int as n from kept`).toEqual([{ n: 1000 }])
    await second.end()
  })

  it('starts over a cluster that is another user’s: restored on a server where its own has another number', async () => {
    const url = await startEmbedded(directory)
    const first = connect({ url, role: 'owner', max: 1 })
    await first`create table kept (n int)`
    await first.end()
    await stopEmbedded(directory)
    spawnSync('chown', ['-R', '4242:4242', join(directory, 'postgres')])
    await startEmbedded(directory)
    const second = connect({ url, role: 'owner', max: 1 })
    expect(await second`select count(*)::int as n from kept`).toEqual([{ n: 0 }])
    await second.end()
  })

  it('starts a killed postmaster again by itself and stops it in order on SIGTERM', async () => {
    const watcher = spawn(process.execPath, [join(import.meta.dirname, 'embedded.ts'), 'run', directory], {
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
    })
    await new Promise((resolve) => watcher.once('message', resolve))
    const pid = postmasterPid(directory)
    if (!pid) throw new Error('no postmaster')
    process.kill(pid, 'SIGKILL')
    await expect.poll(() => postmasterPid(directory), PATIENT).not.toBe(pid)
    const { log } = embeddedPaths(directory)
    truncateSync(log, 2 ** 24)
    await expect.poll(() => [statSync(log).size < 2 ** 24, existsSync(`${log}.1`)], PATIENT).toEqual([true, true])
    const again = connect({ url: embeddedUrl(directory), role: 'owner', max: 1 })
    await expect
      .poll(
        () => again`do $$ begin raise warning 'said afterwards'; end $$`.then(() => readFileSync(log, 'utf8'), String),
        PATIENT,
      )
      .toContain('said afterwards')
    expect(statSync(log).size).toBeLessThan(2 ** 20)
    await again.end()
    const ended = new Promise((resolve) => watcher.once('exit', resolve))
    watcher.kill('SIGTERM')
    expect(await ended).toBe(0)
    expect(postmasterPid(directory)).toBeUndefined()
  })

  it('lets the gateway’s user take the gateway’s role and no other, and lets nobody else in', async () => {
    await startEmbedded(directory)
    const psql = (user: string, role: string) =>
      spawnSync(
        'setpriv',
        [
          `--reuid=${user}`,
          '--clear-groups',
          '--regid=65534',
          process.execPath,
          '--input-type=module',
          '-e',
          `import postgres from ${JSON.stringify(new URL('../node_modules/postgres/src/index.js', import.meta.url).href)}
         const sql = postgres({ host: ${JSON.stringify(join(directory, 'postgres/socket'))}, user: '${role}', database: 'berth' })
         await sql\`select 1\`.then(() => console.log('in'), (e) => console.log(e.message)); await sql.end()`,
        ],
        { encoding: 'utf8', cwd: '/' },
      ).stdout
    spawnSync('useradd', ['--system', '--user-group', '--shell', '/usr/sbin/nologin', 'berth'])
    const owner = connect({ url: embeddedUrl(directory), role: 'owner', max: 1 })
    await owner.unsafe(`do $$ begin create role berth_gateway login; exception when duplicate_object then null; end $$`)
    await owner.end()
    expect(psql('berth', 'berth_gateway')).toContain('in')
    expect(psql('berth', 'berth')).toMatch(/[Pp]eer authentication failed/)
    expect(psql('nobody', 'berth_gateway')).toMatch(/[Pp]eer authentication failed/)
  })
})
