import { userInfo } from 'node:os'
import { describe, expect, it } from 'vitest'
import { makeKeys, ssh, startMachine } from '../relay/fixtures.ts'

describe('an sshd that stands in for a machine', () => {
  // bash reads .bashrc for a command over SSH and .profile for a login shell, zsh .zshenv, and so on: all from HOME.
  it('reads no start-up file of whoever runs the tests', async () => {
    using keys = makeKeys()
    await using machine = await startMachine(keys)
    for (const script of ['echo $HOME ~', 'bash -lc "echo $HOME ~"']) {
      const { stdout } = await ssh(keys, machine.target.port, [script], { ssh: ['-l', 'root'] })
      expect(stdout.toString(), script).toMatch(/^\/tmp\/berth-sshd-\S+\/home \/tmp\/berth-sshd-\S+\/home\n$/)
      expect(stdout.toString()).not.toContain(userInfo().homedir)
    }
  })

  it('still hands on what the client sets, statuses and terminals', async () => {
    using keys = makeKeys()
    await using machine = await startMachine(keys)
    const run = (script: string, options: string[] = []) =>
      ssh(keys, machine.target.port, [script], { ssh: ['-l', 'root', ...options] })
    expect(await run('echo $FLAVOUR; exit 7', ['-o', 'SetEnv=FLAVOUR=salt'])).toMatchObject({
      status: 7,
      stdout: Buffer.from('salt\n'),
    })
    expect((await run('test -t 0', ['-tt'])).status).toBe(0)
  })
})
