import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { createServer, type Socket } from 'node:net'
import { join } from 'node:path'
import ssh2, { type ClientChannel } from 'ssh2'
import { describe, expect, it } from 'vitest'
import { run } from '../../test/gateway.ts'
import { machineOfTarget } from './jump.ts'
import { startWithMachine } from './testing/with-machine.ts'

describe('ssh to a machine', () => {
  it('goes there by name, as its login user, with exit status', async () => {
    await using world = await startWithMachine()
    const { gateway, key } = world
    await gateway.addMachine(world.account, 'demo', world.running)
    const result = await gateway.ssh({ key, user: 'demo', command: ['id -un; exit 7'] })
    expect(result).toMatchObject({ status: 7, stdout: 'root\n', stderr: '' })
    expect(await gateway.ssh({ key, user: 'root+demo', command: ['echo', 'hello'] })).toMatchObject({
      status: 0,
      stdout: 'hello\n',
    })
  })

  it('runs 100 commands one after the other, each over a connection of its own, without a failure', async () => {
    await using world = await startWithMachine()
    const { gateway, key } = world
    await gateway.addMachine(world.account, 'demo', world.running)
    for (let n = 0; n < 100; n++) {
      const result = await gateway.ssh({ key, user: 'demo', command: [`echo ${n}`] })
      expect(result).toMatchObject({ status: 0, stdout: `${n}\n`, stderr: '' })
    }
  }, 120_000)

  it('waits for one that is starting, and says so', async () => {
    await using world = await startWithMachine()
    const { gateway, key, sql } = { ...world, sql: world.gateway.sql }
    const id = await gateway.addMachine(world.account, 'demo', { ...world.running, state: 'creating' })
    const session = gateway.ssh({ key, user: 'demo', command: ['echo', 'here'] })
    await expect.poll(() => gateway.server.signedInCount).toBe(1)
    await sql`
      update machines set observed_state = 'running', observed_boot = 1, observed_stage = 'ready',
        observed_ready_at = now() where id = ${id}`
    expect(await session).toMatchObject({
      status: 0,
      stdout: 'here\n',
      stderr: 'demo is starting (booting); the session begins as soon as it answers\n',
    })
  })

  it('says why one that runs may not answer: its server has trouble with it', async () => {
    await using world = await startWithMachine()
    const { gateway, key, account, running } = world
    const id = await gateway.addMachine(account, 'demo', running)
    await gateway.sql`update machines set observed_reason = 'It stands still' where id = ${id}`
    const session = await gateway.ssh({ key, user: 'demo', command: ['echo', 'here'] })
    expect(session).toMatchObject({ status: 0, stdout: 'here\n', stderr: 'demo: It stands still\n' })
  })

  it('ends a wait when the start fails, with the reason', async () => {
    await using world = await startWithMachine()
    const { gateway, key, sql } = { ...world, sql: world.gateway.sql }
    const id = await gateway.addMachine(world.account, 'demo', { ...world.running, state: 'creating' })
    const session = gateway.ssh({ key, user: 'demo', command: ['true'] })
    await expect.poll(() => gateway.server.signedInCount).toBe(1)
    await sql`
      update machines set observed_state = 'failed', observed_boot = 1, observed_reason = 'the disk is full'
      where id = ${id}`
    const result = await session
    expect(result.status).toBe(255)
    expect(result.stderr).toContain('demo failed: the disk is full; to try again: restart demo')
  })

  it('does not hand a session of before a restart to the machine of after it', async () => {
    await using world = await startWithMachine()
    const { gateway, key, sql } = { ...world, sql: world.gateway.sql }
    const id = await gateway.addMachine(world.account, 'demo', world.running)
    const pid = async () => (await gateway.ssh({ key, user: 'demo', command: ['echo $PPID'] })).stdout
    const before = await pid()
    // The pool shares one connection, whose sshd process is the parent of both shells.
    expect(await pid()).toBe(before)
    await sql`
      update machines set desired_boot = desired_boot + 1, observed_boot = observed_boot + 1,
        observed_ready_at = now() + interval '1 s' where id = ${id}`
    await expect.poll(pid, { timeout: 60_000 }).not.toBe(before)
  })

  it('is told that the machine is off on a connection that is never idle as well', async () => {
    await using world = await startWithMachine()
    const { gateway, key, account, running } = world
    const id = await gateway.addMachine(account, 'demo', running)
    const control = join(gateway.directory, 'control')
    const over = ['-S', control, '-o', 'ControlMaster=auto', '-o', 'ControlPersist=30']
    const session = () => gateway.ssh({ key, user: 'demo', args: over, command: ['true'] })
    expect((await session()).status).toBe(0)
    await gateway.sql`update machines set desired_state = 'stopped', observed_state = 'stopped' where id = ${id}`
    // One after the other without a rest: what was known of the machine must grow old all the same.
    const until = performance.now() + 8_000
    let last = await session()
    while (!last.stderr.includes('is off') && performance.now() < until) last = await session()
    await gateway.ssh({ key, user: 'demo', args: ['-S', control, '-O', 'exit'] })
    expect(last).toMatchObject({ status: 255, stderr: expect.stringContaining('demo is off; to start it: start demo') })
  })

  it('loses the connection when the key is removed, also in the middle of a session', async () => {
    await using world = await startWithMachine()
    const { gateway, key } = world
    await gateway.addMachine(world.account, 'demo', world.running)
    const session = gateway.ssh({ key, user: 'demo', command: ['echo started; sleep 60'] })
    await expect.poll(() => gateway.server.signedInCount).toBe(1)
    await gateway.sql`delete from keys`
    expect(await session).toMatchObject({
      status: 255,
      stderr: expect.stringContaining('the key that this connection signed in with was removed from the account'),
    })
  })
})

describe('ssh -J through the lobby', () => {
  it('reaches a machine end to end by both its names', async () => {
    await using world = await startWithMachine({ env: { BERTH_MACHINE_DOMAIN: 'vm.example.com' } })
    const { gateway, key } = world
    await gateway.addMachine(world.account, 'demo', world.running)
    for (const target of ['demo', 'demo.vm.example.com', 'DEMO.vm.example.com.']) {
      const proxy = ['ssh', ...gateway.sshOptions(key), '-o', 'BatchMode=yes', '-W', `${target}:22`, 'lobby@127.0.0.1']
      const result = await run('ssh', [
        ...[
          '-F',
          '/dev/null',
          '-i',
          key,
          '-o',
          'IdentitiesOnly=yes',
          '-o',
          'IdentityAgent=none',
          '-o',
          'BatchMode=yes',
        ],
        ...['-o', 'StrictHostKeyChecking=no', '-o', 'UserKnownHostsFile=/dev/null', '-o', 'LogLevel=ERROR'],
        ...['-o', `ProxyCommand=${proxy.join(' ')}`, `root@demo`, 'echo $SSH_CONNECTION'],
      ])
      expect(result, target).toMatchObject({ status: 0, stderr: '' })
    }
  })

  it('carries 20 MB and each side’s end to a port of the machine', async () => {
    await using world = await startWithMachine()
    const { gateway, key } = world
    await gateway.addMachine(world.account, 'demo', world.running)
    // Answers only after the other side's end: half-close has to be passed on.
    const server = createServer({ allowHalfOpen: true }, (socket) => {
      let length = 0
      socket.on('data', (chunk) => {
        length += chunk.length
      })
      socket.on('end', () => socket.end(`${length} bytes\n`))
    })
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    const { port } = server.address() as { port: number }
    try {
      const result = await gateway.ssh({ key, args: ['-W', `demo:${port}`], input: Buffer.alloc(20_000_000, 'x') })
      expect(result).toMatchObject({ status: 0, stdout: '20000000 bytes\n' })
    } finally {
      server.close()
    }
  })

  it('gives a slow reader all that a port sent, also when both sides have ended long before', async () => {
    await using world = await startWithMachine()
    const { gateway, key } = world
    await gateway.addMachine(world.account, 'demo', world.running)
    const server = createServer((socket) => socket.resume().end(Buffer.alloc(3_500_000, 'x')))
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    const { port } = server.address() as { port: number }
    try {
      const connected = once(server, 'connection')
      const args = [...gateway.sshOptions(key), '-T', '-o', 'BatchMode=yes', '-W', `demo:${port}`, 'lobby@127.0.0.1']
      const reader = spawn('ssh', args, { stdio: ['ignore', 'pipe', 'inherit'] })
      const ended = once(reader, 'exit')
      const [machine] = (await connected) as [Socket]
      await once(machine, 'close')
      // Whatever the gateway does about that end, it does before it serves somebody else
      expect((await gateway.ssh({ key, command: ['ls'] })).status).toBe(0)
      let lengthBytes = 0
      for await (const chunk of reader.stdout) lengthBytes += chunk.length
      expect(lengthBytes).toBe(3_500_000)
      expect((await ended)[0]).toBe(0)
    } finally {
      server.close()
    }
  })

  it('gives a port all that a client sent which is long gone', async () => {
    await using world = await startWithMachine()
    const { gateway, key } = world
    await gateway.addMachine(world.account, 'demo', world.running)
    // Its side ends first, so that the channel is closed as soon as the gateway has what the client sends
    const server = createServer({ allowHalfOpen: true, pauseOnConnect: true }, (socket) => socket.end())
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    const { port } = server.address() as { port: number }
    const client = new ssh2.Client()
    try {
      client.connect({ host: '127.0.0.1', port: gateway.port, username: 'lobby', privateKey: readFileSync(key) })
      await once(client, 'ready')
      const connected = once(server, 'connection')
      const channel = await new Promise<ClientChannel>((resolve, reject) =>
        client.forwardOut('', 0, 'demo', port, (error, opened) => (error ? reject(error) : resolve(opened))),
      )
      const closed = once(channel, 'close')
      const [machine] = (await connected) as [Socket]
      // As much as the gateway takes while the machine reads nothing: it has had time to take more when it answered
      const { outgoing } = channel as unknown as { outgoing: { window: number } }
      let sentBytes = 0
      for (let full = 0; full < 3; ) {
        full = outgoing.window === 0 ? full + 1 : 0
        sentBytes += outgoing.window
        channel.write(Buffer.alloc(outgoing.window))
        const answer = await new Promise<ClientChannel>((resolve, reject) =>
          client.exec('ls', (error, session) => (error ? reject(error) : resolve(session))),
        )
        await once(answer.resume(), 'close')
      }
      channel.resume().end()
      await closed
      client.end()
      await expect.poll(() => gateway.server.connectionCount).toBe(0)
      let lengthBytes = 0
      for await (const chunk of machine) lengthBytes += chunk.length
      expect(lengthBytes).toBe(sentBytes)
    } finally {
      client.end()
      server.close()
    }
  })

  it('goes nowhere else, and says why', async () => {
    await using world = await startWithMachine()
    const { gateway, key } = world
    await gateway.addMachine(world.account, 'demo', world.running)
    await gateway.addMachine(world.account, 'off', { state: 'stopped' })
    const jump = async (target: string) => (await gateway.ssh({ key, args: ['-W', target] })).stderr
    const only = 'only your machines can be reached through the lobby'
    expect(await jump('127.0.0.1:22')).toContain(`no machine called 127.0.0.1; ${only}`)
    expect(await jump('169.254.169.254:80')).toContain(only)
    expect(await jump('localhost:5432')).toContain(only)
    expect(await jump('nowhere:22')).toContain(`no machine called nowhere; ${only}`)
    expect(await jump('off:22')).toContain('off is off; to start it: start off')
    expect(await jump('demo:1')).toContain('nothing listens on port 1 of demo')
    const listen = await gateway.ssh({ key, args: ['-o', 'ExitOnForwardFailure=yes', '-N', '-R', '0:127.0.0.1:1'] })
    expect(listen).toMatchObject({ status: 255, stderr: expect.stringContaining('remote port forwarding failed') })
  })
})

describe('a jump target', () => {
  it('is a machine’s name, bare or under the machine domain', () => {
    const machine = (target: string) => machineOfTarget(target, 'vm.example.com')
    expect(machine('demo')).toBe('demo')
    expect(machine('Demo.VM.example.com.')).toBe('demo')
    for (const other of ['demo.example.com', 'a.demo.vm.example.com', 'vm.example.com', '10.42.0.5', '::1', '', '.']) {
      expect(machine(other), other).toBeUndefined()
    }
  })
})
