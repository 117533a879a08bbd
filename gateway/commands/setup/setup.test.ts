import { chmodSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { buildInit } from '../../../init/build.ts'
import { startTestGateway } from '../../../test/gateway.ts'
import { runLine } from '../run.ts'
import { type MachineRow, machineRow } from '../testing/rows.ts'
import { recordingIo, startWorld, type World } from '../testing/world.ts'

const INIT = join(import.meta.dirname, '../../../init')
const PATIENT = { timeout: 60_000, interval: 20 }

/** The real session holder, under the host's sshd instead of a machine's: only its place differs. */
describe('a setup script', () => {
  let world: World
  let directory: string
  beforeAll(async () => {
    buildInit('exe-hold')
    directory = mkdtempSync(join(tmpdir(), 'berth-setup-'))
    const shell = join(directory, 'shell')
    writeFileSync(
      shell,
      `#!/bin/sh\nexport EXE_HOLD_DIRECTORY=${directory}/hold PATH=${directory}/bin:$PATH\nexec /bin/sh -c "$(printf %s "$SSH_ORIGINAL_COMMAND" | sed 's,/exe/bin/exe-hold,${INIT}/build/exe-hold,g')"\n`,
    )
    chmodSync(shell, 0o755)
    world = await startWorld({ sshd: true, forceCommand: shell })
  })
  afterAll(async () => {
    await world?.[Symbol.asyncDispose]()
    rmSync(directory, { recursive: true, force: true })
  })
  const row = (name: string): Promise<MachineRow | undefined> => machineRow(world, name)
  /** The machines share the host, and with it the holder: each test begins with none. */
  const forget = () => rmSync(`${directory}/hold`, { recursive: true, force: true })

  it('is run once the machine answers, and new says how it ended and where its log is', async () => {
    const ran = await world.run('new good --memory 512M --setup-script -', {
      stdin: `echo "it's running"; touch ${directory}/mark; exit 0\n`,
    })
    expect(ran.status, ran.stderr).toBe(0)
    expect(ran.stderr).toMatch(/^good answers after [\d.]+ s; its setup script runs\n$/)
    expect(ran.stdout).toMatch(/^setup script ended with status 0; its log: ssh .*exe-hold logs setup'\ngood is ready/)
    expect(existsSync(join(directory, 'mark'))).toBe(true)
    expect((await world.run('ssh good /exe/bin/exe-hold logs setup')).stdout).toBe("it's running\n")
    expect((await world.json('ls good')).document).toMatchObject({
      vms: [{ setup: { state: 'done', exit_status: 0 } }],
    })
    // It may hold a password: with its end it is in no row and no backup any more.
    expect(await world.gateway.sql`select setup_script from machines where name = 'good'`).toEqual([
      { setup_script: null },
    ])
    forget()
  })

  it('begins when the start of the machine is over: SSH answers long before', async () => {
    const bin = join(directory, 'bin')
    mkdirSync(bin)
    // As systemctl: nothing but an error while there is no bus, then `starting`, with a status of 1
    writeFileSync(
      join(bin, 'systemctl'),
      `#!/bin/sh\ntest -e ${directory}/asked && { echo running; exit; }\ntouch ${directory}/asked\necho 'Failed to connect to bus' >&2\nexit 1\n`,
    )
    chmodSync(join(bin, 'systemctl'), 0o755)
    const ran = await world.run('new started --memory 512M --setup-script -', {
      stdin: `systemctl is-system-running > ${directory}/state\n`,
    })
    rmSync(bin, { recursive: true })
    expect(ran.status, ran.stderr).toBe(0)
    expect(readFileSync(join(directory, 'state'), 'utf8')).toBe('running\n')
    forget()
  })

  it('that fails is told with its status, and the machine stays', async () => {
    const { status, document } = await world.json("new bad --memory 512M --setup-script='#!/bin/bash\nexit 3'")
    expect(status).toBe(1)
    expect(document).toMatchObject({
      error: 'bad is ready, but its setup script ended with status 3',
      code: 'machine.setup_failed',
      vm_name: 'bad',
      setup: { state: 'failed', exit_status: 3 },
    })
    expect((await row('bad'))?.observed_state).toBe('running')
    forget()
  })

  it('is not waited for when its machine is stopped or thrown away', async () => {
    for (const [name, line, sentence] of [
      ['off', 'stop off --no-wait', /off was stopped while its setup script ran\nstart off\n$/],
      ['tossed', 'rm tossed', /tossed was put into the trash while its setup script ran\nuntrash tossed\n$/],
    ] as const) {
      const io = recordingIo({ stdin: '' })
      const script = `while test -e ${directory}; do sleep 0.1; done`
      const making = runLine(world.app, world.owner, `new ${name} --memory 512M --setup-script '${script}'`, io)
      await expect.poll(() => io.stderrText(), PATIENT).toContain('its setup script runs')
      expect((await world.run(line)).status).toBe(0)
      expect(await making).toBe(1)
      expect(io.stderrText()).toMatch(sentence)
      forget()
    }
  })

  it('whose machine reboots meanwhile has failed, and is not run again', async () => {
    writeFileSync(join(directory, 'busy'), '')
    const script = `echo once >> ${directory}/tries; while test -e ${directory}/busy; do sleep 0.05; done`
    await world.run(`new rebooted --memory 512M --no-wait --setup-script '${script}'`)
    await expect.poll(() => existsSync(`${directory}/tries`), PATIENT).toBe(true)
    // As when the script itself says `reboot`: nothing in memory is left, and it is the same start of the machine.
    forget()
    world.app.pool.forget((await world.app.machines.find('rebooted', world.owner))?.id ?? 0)
    await expect.poll(() => row('rebooted').then((machine) => machine?.setup_state), PATIENT).not.toBe('running')
    rmSync(join(directory, 'busy'))
    expect(readFileSync(join(directory, 'tries'), 'utf8')).toBe('once\n')
    expect(await row('rebooted')).toMatchObject({ setup_state: 'failed', setup_exit_status: null })
    expect((await world.run('audit rebooted')).stdout).toContain('machine.setup_started')
    forget()
  })

  it('goes on when nobody waits, and when the gateway ends; the next one reports its end', async () => {
    expect(
      (
        await world.run(
          `new later --memory 512M --no-wait --setup-script 'while ! test -e ${directory}/go; do sleep 0.05; done; echo once >> ${directory}/runs; exit 4'`,
        )
      ).status,
    ).toBe(0)
    await expect.poll(() => row('later').then((machine) => machine?.setup_state), PATIENT).toBe('running')
    await expect.poll(() => existsSync(`${directory}/hold/setup.sock`), PATIENT).toBe(true)
    await world.gateway.close(0)
    writeFileSync(join(directory, 'go'), '')
    await expect.poll(() => existsSync(`${directory}/runs`), PATIENT).toBe(true)
    expect(await row('later')).toMatchObject({ setup_state: 'running' })
    await using next = await startTestGateway({
      database: world.gateway.database,
      secretKey: world.gateway.secretKey,
      machineSshPort: world.machineSshPort,
      env: { BERTH_NETWORK: '127.64.0.0/16' },
    })
    await expect.poll(() => row('later').then((machine) => machine?.setup_state), PATIENT).toBe('failed')
    expect(await row('later')).toMatchObject({ setup_exit_status: 4 })
    expect(readFileSync(join(directory, 'runs'), 'utf8')).toBe('once\n')
    forget()

    // Marked as running, and the holder knows nothing: on the first boot the starter died too early, so it is run.
    const io = recordingIo({ stdin: '' })
    await runLine(next.app, world.owner, 'new lost --memory 512M', io)
    await world.gateway.sql`update machines set setup_state = 'running', setup_exit_status = null,
      setup_script = 'exit 5' where name = 'lost'`
    await expect.poll(() => row('lost').then((machine) => machine?.setup_exit_status), PATIENT).toBe(5)
    forget()
    // After a restart it is not: it may have run halfway.
    await world.gateway
      .sql`update machines set setup_state = 'running', setup_exit_status = null, setup_script = 'exit 5', observed_boot = 2, desired_boot = 2 where name = 'lost'`
    await expect.poll(() => row('lost').then((machine) => machine?.setup_state), PATIENT).toBe('failed')
    expect(await row('lost')).toMatchObject({ setup_exit_status: null })
  })
})

describe('many setup scripts', () => {
  const directory = mkdtempSync(join(tmpdir(), 'berth-setups-'))
  const shell = join(directory, 'shell')
  const deaf = join(directory, 'deaf')
  const busy = join(directory, 'busy')
  let world: World
  beforeAll(async () => {
    buildInit('exe-hold')
    // Each machine has a holder of its own; those whose address is in a file of `deaf` never take their script.
    writeFileSync(
      shell,
      `#!/bin/sh
set -- $SSH_CONNECTION
while test -e ${deaf}/$3; do sleep 0.2; done
export EXE_HOLD_DIRECTORY=${directory}/hold-$3
exec /bin/sh -c "$(printf %s "$SSH_ORIGINAL_COMMAND" | sed 's,/exe/bin/exe-hold,${INIT}/build/exe-hold,g')"
`,
    )
    chmodSync(shell, 0o755)
    mkdirSync(deaf)
    mkdirSync(busy)
    world = await startWorld({ sshd: true, forceCommand: shell })
  })
  afterAll(async () => {
    rmSync(deaf, { recursive: true, force: true })
    rmSync(busy, { recursive: true, force: true })
    await world?.[Symbol.asyncDispose]()
    rmSync(directory, { recursive: true, force: true })
  })
  const make = (name: string, script: string, caller = world.owner) =>
    world.run(`new ${name} --memory 128M --cpu 1 --no-wait --setup-script '${script}'`, { caller })
  const state = (name: string) => machineRow(world, name).then((machine) => machine?.setup_state)

  it('that never end keep nobody from theirs', async () => {
    for (let n = 0; n < 16; n++) await make(`endless-${n}`, `while test -e ${busy}; do sleep 0.5; done`)
    await make('short', 'exit 0')
    await expect.poll(() => state('short'), PATIENT).toBe('done')
    expect(await world.gateway.sql`select from machines where setup_state = 'running'`).toHaveLength(16)
    rmSync(busy, { recursive: true })
    await expect.poll(() => state('endless-15'), PATIENT).toBe('done')
  })

  it('that one account’s machines never take keep no other account from theirs', async () => {
    const other = await world.account()
    await world.gateway.sql`update accounts set max_machines = 16 where id = ${other.accountId}`
    for (let n = 0; n < 16; n++) {
      // 16 of the first test and short have the addresses before.
      writeFileSync(join(deaf, `127.64.0.${2 + 17 + n}`), '')
      await make(`deaf-${n}`, 'exit 0', other)
    }
    await expect
      .poll(async () => (await world.gateway.sql`select from machines where setup_state = 'running'`).length, PATIENT)
      .toBe(4)
    await make('heard', 'exit 0')
    await expect.poll(() => state('heard'), PATIENT).toBe('done')
    expect(await world.gateway.sql`select from machines where setup_state = 'running'`).toHaveLength(4)
    rmSync(deaf, { recursive: true })
    await expect.poll(() => state('deaf-15'), PATIENT).toBe('done')
  })
})
