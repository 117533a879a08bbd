import { existsSync } from 'node:fs'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { runLine } from './run.ts'
import { addressesInUse, type MachineRow, machineRow } from './testing/rows.ts'
import { recordingIo, startWorld, type World } from './testing/world.ts'

const GIBIBYTE = 2 ** 30
/** Waits for an event; this long only where the machine running the tests is busy. */
const PATIENT = { timeout: 60_000, interval: 20 }

describe('with machines that start', () => {
  let world: World
  beforeAll(async () => {
    world = await startWorld({ sshd: true })
  })
  afterAll(() => world?.[Symbol.asyncDispose]())
  const row = (name: string): Promise<MachineRow | undefined> => machineRow(world, name)

  it('new returns when SSH works and ends with what to type', async () => {
    const ran = await world.run('new demo --memory 1G --cpu 1 --disk 5G --tag web --tag ci --comment "for Tuesday"')
    expect(ran, ran.stderr).toMatchObject({ status: 0, stderr: '' })
    expect(ran.stdout).toMatch(/^demo is ready after [\d.]+ s: ssh -p \d+ demo@localhost\n$/)
    expect(await row('demo')).toMatchObject({
      cpus: 1,
      memory_bytes: GIBIBYTE,
      disk_bytes: 5 * GIBIBYTE,
      tags: ['ci', 'web'],
      comment: 'for Tuesday',
      observed_state: 'running',
      sleep_after_seconds: null,
    })
  })

  it('new takes every flag of the contract, the name as a flag too', async () => {
    const { status, document } = await world.json(
      "new --name=full --image=minimal --cpu=1 --memory=512M --disk=2G --env=A=1 '--env=B=x y=z' --tag=t --comment=c --command=none --sleep-after=30m --no-email",
    )
    expect(status).toBe(0)
    expect(document).toEqual({
      vm_name: 'full',
      status: 'running',
      ssh_dest: 'full@localhost',
      ssh_host: 'localhost',
      ssh_port: expect.any(Number),
      ssh_user: 'full',
      login_user: 'root',
      https_url: 'https://full.localhost:8443',
      image: 'minimal',
      region: 'server1',
      tags: ['t'],
      comment: 'c',
      allocated_cpus: 1,
      memory_capacity_bytes: 512 * 2 ** 20,
      disk_capacity_bytes: 2 * GIBIBYTE,
      created_at: expect.stringMatching(/^\d{4}-.*Z$/),
      awake_because: null,
      ip: expect.stringMatching(/^127\.64\./),
      host: 'server1',
    })
    expect(await row('full')).toMatchObject({
      env: { A: '1', B: 'x y=z' },
      command: 'none',
      sleep_after_seconds: 1800,
    })
    expect((await world.run('rm full --now')).stdout).toBe('full is gone\n')
  })

  it('ls shows it, by pattern, grouped, long, and as the document that the SDK reads', async () => {
    const { document } = await world.json('ls')
    expect(document).toMatchObject({ vms: [{ vm_name: 'demo', status: 'running', awake_because: null }] })
    expect((await world.run('ls')).stdout).toMatch(
      /^name +status +awake +image +cpu +memory +disk +address\ndemo +running +always +base +1 +1 GiB +5 GiB +127/,
    )
    expect((await world.json("ls 'x*'")).document).toEqual({ vms: [] })
    expect((await world.json("ls 'de*'")).document).toMatchObject({ vms: [{ vm_name: 'demo' }] })
    expect((await world.run('ls --group tag')).stdout).toMatch(/^ci\n[\s\S]*demo[\s\S]*web\n/)
    expect((await world.run('ls -l')).stdout).toMatch(
      /demo {2}running\n {2}ssh -p[\s\S]*tags: ci web\n {2}for Tuesday\n/,
    )
    expect(await world.run('ls tpyo')).toMatchObject({ status: 3, stdout: '' })
    expect(await world.json('ls tpyo')).toEqual({
      status: 3,
      document: {
        vms: [],
        error: 'no machine called tpyo',
        code: 'machine.not_found',
        way_on: 'ls shows those you have',
      },
    })
  })

  it('stop, start and restart return when it is so', async () => {
    expect((await world.run('stop demo')).stdout).toMatch(/^demo is stopped after/)
    expect((await row('demo'))?.observed_state).toBe('stopped')
    expect((await world.json('start demo')).document).toEqual({ vm_name: 'demo', status: 'running' })
    const before = (await row('demo'))?.desired_boot ?? 0
    expect((await world.run('restart demo')).stdout).toMatch(/^demo is running again after/)
    expect(await row('demo')).toMatchObject({ desired_boot: before + 1, observed_boot: before + 1 })
    // Nothing is restarted by asking for what is.
    await world.run('start demo')
    expect(await row('demo')).toMatchObject({ desired_boot: before + 1 })
  })

  it('of several machines those that can be are done, and the others told', async () => {
    const ran = await world.run('stop demo tpyo')
    expect(ran.status).toBe(3)
    expect(ran.stdout).toMatch(/^demo is stopped/)
    expect(ran.stderr).toMatch(/no machine called tpyo\nmachines you can reach: demo\n/)
    await world.run('start demo')
  })

  it('a machine that fails says why, and with which command to go on', async () => {
    world.vmhost.failures.set('demo', 'the kernel panicked')
    const ran = await world.run('restart demo')
    expect(ran.status).toBe(1)
    expect(ran.stderr).toMatch(/demo failed: the kernel panicked[\s\S]*restart demo/)
    expect((await world.json('ls demo')).document).toMatchObject({
      vms: [{ status: 'failed', reason: 'the kernel panicked' }],
    })
    expect((await world.run('why demo')).stdout).toBe('demo failed: the kernel panicked\nto try again: restart demo\n')
    world.vmhost.failures.clear()
    expect((await world.run('restart demo')).status).toBe(0)
  })

  it('new leaves nothing of a machine whose image cannot be had, and its name is free', async () => {
    world.vmhost.imageFailures.set('unmade', 'There is no image somewhere/else')
    const ran = await world.run('new unmade --image somewhere/else')
    expect(ran).toMatchObject({ status: 1, stdout: '' })
    expect(ran.stderr).toMatch(/unmade was not made, and nothing is left of it: There is no image somewhere\/else/)
    world.vmhost.imageFailures.clear()
    expect((await world.run('new unmade')).status).toBe(0)
    expect((await world.run('rm --now -f unmade')).status).toBe(0)
  })

  it('doctor names the versions that an operator is asked for', async () => {
    await world.gateway.sql`update hosts set hypervisor = 'qemu 10.0.8'`
    const { stdout } = await world.run('doctor')
    expect(stdout).toMatch(/server1: machines run under qemu 10\.0\.8/)
    expect(stdout).toMatch(new RegExp(`gateway: runs on Node ${process.versions.node} and Linux \\d`))
    expect(stdout).toMatch(/gateway: Postgres \d/)
  })

  it('stop of a machine that failed makes it a stopped one', async () => {
    world.vmhost.failures.set('demo', 'the kernel panicked')
    expect((await world.run('restart demo')).status).toBe(1)
    world.vmhost.failures.clear()
    // The command sees the failure before the server does anything.
    world.vmhost.paused = true
    const byId = vi.spyOn(world.app.machines, 'byId')
    const stopping = world.run('stop demo')
    await vi.waitFor(() => expect(byId).toHaveBeenCalled(), PATIENT)
    await byId.mock.results[0]?.value
    byId.mockRestore()
    world.vmhost.paused = false
    world.vmhost.look()
    expect(await stopping).toMatchObject({ status: 0, stdout: expect.stringMatching(/^demo is stopped after/) })
    expect(await row('demo')).toMatchObject({ observed_state: 'stopped' })
    expect((await world.run('start demo')).status).toBe(0)
  })

  it('rm puts into the trash, frees the name at once, and untrash brings the same machine back', async () => {
    const before = await row('demo')
    expect((await world.run('rm demo')).stdout).toBe('demo is in the trash for 7 days; to have it back: untrash demo\n')
    expect((await world.json('ls')).document).toEqual({ vms: [] })
    expect((await world.json('trash')).document).toMatchObject({ vms: [{ vm_name: 'demo' }] })
    expect((await world.run('new demo --memory 512M --no-wait')).status).toBe(0)
    expect(await world.run('untrash demo')).toMatchObject({ status: 1, stderr: expect.stringMatching(/demo is taken/) })
    const back = await world.json('untrash demo --as second')
    expect(back).toMatchObject({ status: 0, document: { vm_name: 'second', status: 'running' } })
    expect(await row('second')).toMatchObject({ id: before?.id, address: before?.address })
    expect((await world.run('rm demo --now')).status).toBe(0)
    expect((await world.run('rename second demo')).stdout).toMatch(/^second is called demo now: ssh/)
  })

  it('a stopped machine comes back from the trash stopped', async () => {
    await world.run('stop demo')
    await world.run('rm demo')
    expect((await world.run('untrash demo')).stdout).toBe(
      'demo is back and stopped, as it was; to start it: start demo\n',
    )
    expect((await row('demo'))?.desired_state).toBe('stopped')
    await world.run('start demo')
  })

  it('rm --now deletes for good, also from the trash, and frees the address', async () => {
    await world.run('new gone --memory 512M')
    await world.run('rm gone')
    const { document } = await world.json('rm --now gone tpyo')
    expect(document).toMatchObject({ deleted: ['gone'], failed: ['tpyo'], not_found: ['tpyo'] })
    expect(await addressesInUse(world)).toBe(1)
    expect((await world.json('trash')).document).toEqual({ vms: [] })
  })

  it('rename, tag and comment change what they say', async () => {
    expect((await world.json('rename demo api')).document).toEqual({
      old_name: 'demo',
      new_name: 'api',
      ssh_dest: 'api@localhost',
      https_url: 'https://api.localhost:8443',
    })
    await world.run('rename api demo')
    expect((await world.json('tag demo a b')).document).toEqual({ vm_name: 'demo', tags: ['a', 'b', 'ci', 'web'] })
    expect((await world.json('tag -d demo a ci')).document).toEqual({ vm_name: 'demo', tags: ['b', 'web'] })
    expect((await world.run('tag -d demo web')).stdout).toBe('demo has the tag b\n')
    expect((await world.run('tag demo web')).stdout).toBe('demo has the tags b web\n')
    expect((await world.json('comment demo new words')).document).toEqual({ vm_name: 'demo', comment: 'new words' })
    expect((await world.run("comment demo ''")).stdout).toBe('demo has no comment any more\n')
    expect(await world.run('tag demo Bad')).toMatchObject({ status: 2 })
  })

  it('ssh runs a command there: streams apart, stdin, exit status', async () => {
    const ran = await world.run("ssh demo 'cat; echo err >&2; exit 7'", { stdin: 'from here' })
    expect(ran).toEqual({ status: 7, stdout: 'from here', stderr: 'err\n' })
    expect(await world.run('ssh demo echo --json -l')).toMatchObject({ status: 0, stdout: '--json -l\n' })
    expect(JSON.parse((await world.run("ssh --json demo 'echo a; exit 3'")).stdout)).toEqual({
      stdout: 'a\n',
      stderr: '',
      exit_code: 3,
    })
    expect((await world.run("ssh demo 'kill -TERM $$'")).status).toBe(143)
    expect(await world.run('ssh tpyo true')).toMatchObject({ status: 3 })
  })

  it('ssh --json of what prints without end ends it, and says so', async () => {
    const { status, stdout } = await world.run('ssh --json demo yes')
    expect(status).toBe(1)
    expect(JSON.parse(stdout)).toMatchObject({ code: 'output.too_long' })
  })

  it('ssh ends the command when the client is gone', async () => {
    const gone = new AbortController()
    const io = recordingIo({ signal: gone.signal })
    const running = runLine(world.app, world.owner, "ssh demo 'echo $$; exec cat'", io)
    await expect.poll(() => io.stdoutText(), PATIENT).toMatch(/\n/)
    const pid = Number(io.stdoutText())
    expect(existsSync(`/proc/${pid}`)).toBe(true)
    gone.abort()
    expect(await running).toBeGreaterThan(0)
    await expect.poll(() => existsSync(`/proc/${pid}`), PATIENT).toBe(false)
  })

  it('20 new at once are all admitted, with addresses and names of their own', async () => {
    const made = await Promise.all(Array.from({ length: 20 }, () => world.json('new --memory 512M --cpu 1')))
    expect(made.map((one) => one.status)).toEqual(Array(20).fill(0))
    const names = new Set(made.map((one) => one.document.vm_name))
    const ips = new Set(made.map((one) => one.document.ip))
    expect([names.size, ips.size]).toEqual([20, 20])
    expect((await world.run(`rm --now ${[...names].join(' ')}`)).status).toBe(0)
    expect(await addressesInUse(world)).toBe(1)
  })

  it('several of which none can be had are an error, and what to do is said once', async () => {
    const wayOn = 'machines you can reach: demo'
    expect(await world.run('stop tpyo typo')).toEqual({
      status: 3,
      stdout: '',
      stderr: `no machine called tpyo\nno machine called typo\n${wayOn}\n`,
    })
    const errors = { tpyo: 'no machine called tpyo', typo: 'no machine called typo' }
    expect(await world.json('stop tpyo typo')).toEqual({
      status: 3,
      document: { vms: [], errors, error: errors.tpyo, code: 'machine.not_found', way_on: wayOn },
    })
    expect((await world.json('rm tpyo')).document).toMatchObject({ code: 'machine.not_found', way_on: wayOn })
    expect(await world.run('sleep-after demo 5200w')).toMatchObject({
      status: 2,
      stderr: expect.stringMatching(/^the idle time is at most 520w, ten years\n/),
    })
  })

  it('a machine that has said nothing is told from one whose log is lost', async () => {
    expect(await world.run('logs demo --boot')).toEqual({
      status: 0,
      stdout: '',
      stderr: 'demo has said nothing on its console yet\n',
    })
  })

  it('logs are harmless, whatever the machine printed', async () => {
    const machine = await row('demo')
    const pieces = ['one\r\n\x1b[31mred\x1b[0m\n\x1b]0;tit', 'le\x07two\x1b', '[2Jthree \xff\x07\n'].map((text) =>
      Buffer.from(text, 'latin1'),
    )
    for (const [seq, bytes] of pieces.entries()) {
      await world.gateway
        .sql`insert into console_chunks (machine_id, seq, boot, bytes) values (${machine?.id ?? 0}, ${seq}, ${seq + 1}, ${bytes})`
    }
    expect((await world.run('logs demo')).stdout).toBe('one\nred\ntwothree \ufffd\n')
    expect((await world.run('logs demo --boot')).stdout).toBe('[2Jthree \ufffd\n')
    expect((await world.json('logs demo')).document).toEqual({ vm_name: 'demo', log: 'one\nred\ntwothree \ufffd\n' })
  })

  it('logs -f goes on until the person leaves', async () => {
    const leave = new AbortController()
    const machine = await row('demo')
    const io = recordingIo({ signal: leave.signal })
    const following = runLine(world.app, world.owner, 'logs demo -f', io)
    await expect.poll(() => io.stdoutText(), PATIENT).toMatch(/three/)
    await world.gateway
      .sql`insert into console_chunks (machine_id, seq, boot, bytes) values (${machine?.id ?? 0}, 10, 3, ${Buffer.from('later\n')})`
    await expect.poll(() => io.stdoutText(), PATIENT).toMatch(/later\n$/)
    leave.abort()
    expect([await following, io.stderrText()]).toEqual([130, ''])
  })

  it('new --dry-run says what would be made, and makes nothing', async () => {
    const machines = async () => (await world.gateway.sql`select id from machines`).length
    const before = await machines()
    const { document } = await world.json('new --dry-run --memory 1G')
    expect(document).toMatchObject({
      dry_run: true,
      vm_name: expect.stringMatching(/^[a-z]+-[a-z]+$/),
      image: 'base',
      images: ['base', 'minimal'],
      allocated_cpus: 2,
      memory_capacity_bytes: GIBIBYTE,
      host: 'server1',
    })
    expect((await world.run(`new tried --dry-run`)).stdout).toMatch(/^tried would be made on server1: base, 2 cpu/)
    expect((await world.json('new --dry-run --memory 900G')).status).toBe(5)
    expect((await world.json('new demo --dry-run')).document).toMatchObject({ code: 'machine.name_taken' })
    expect([await machines(), await row('tried')]).toEqual([before, undefined])
  })

  it('everything that changes something is in audit', async () => {
    const { document } = await world.json('audit -n 1000')
    const kinds = new Set((document.events as { kind: string }[]).map((event) => event.kind))
    for (const kind of [
      'created',
      'stopped',
      'started',
      'restarted',
      'trashed',
      'untrashed',
      'deleted',
      'renamed',
      'tagged',
      'commented',
    ]) {
      expect(kinds).toContain(`machine.${kind}`)
    }
    expect((await world.run('audit demo -n 3')).stdout).toMatch(/when +what/)
  })

  it('an account sees and reaches only its own machines', async () => {
    const stranger = await world.account()
    for (const line of [
      'ssh demo true',
      'stop demo',
      'rm demo',
      'logs demo',
      'rename demo x',
      'tag demo x',
      'comment demo x',
      'audit demo',
      'rm --now demo',
    ]) {
      expect(await world.run(line, { caller: stranger }), line).toMatchObject({ status: 3, stdout: '' })
    }
    expect((await world.json('ls', { caller: stranger })).document).toEqual({ vms: [] })
    expect(await world.run('new demo', { caller: stranger })).toMatchObject({
      status: 1,
      stderr: expect.stringMatching(/taken/),
    })
    expect((await row('demo'))?.desired_state).toBe('running')
  })
})
