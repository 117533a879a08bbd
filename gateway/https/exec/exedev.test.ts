/** The published SDK for exe.dev, unmodified: whoever has programs for it should be able to keep them. */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { testPython } from '../../../test/clients/python.ts'
import { CHECKOUT } from '../../../test/e2e/product.ts'
import { run } from '../../../test/gateway.ts'
import { createToken } from '../../accounts/tokens.ts'
import { startWorld, type World } from '../../commands/testing/world.ts'

const JOB = join(CHECKOUT, 'test/clients/exedev_job.py')

let world: World
let url: string
let environment: NodeJS.ProcessEnv

beforeAll(async () => {
  world = await startWorld({ sshd: true, https: true })
  const { gateway, owner } = world
  url = `https://localhost:${gateway.https?.server.addresses[0]?.port}`
  const [root] = await gateway.sql<{ value: string }[]>`select value from settings where key = 'ca_certificate'`
  const authority = join(gateway.directory, 'ca.pem')
  writeFileSync(authority, root?.value ?? '')
  const { token } = await createToken(gateway.sql, { accountId: owner.accountId, label: '', expiresInMs: 600_000 })
  environment = { ...process.env, EXE_TOKEN: token, SSL_CERT_FILE: authority }
})
afterAll(() => world?.[Symbol.asyncDispose]())

describe('exedev', () => {
  it.each(['new', 'run', 'spawn', 'files', 'manage', 'share', 'account', 'rm'])('%s', async (part) => {
    const ran = await run(testPython(), [JOB, url, 'minimal', part], undefined, environment)
    expect(ran, ran.stderr).toMatchObject({ status: 0, stdout: `${part}\n` })
  })

  it('is told that a machine is off', async () => {
    await world.run('new off')
    await world.run('stop off')
    const program = 'import exedev, sys; exedev.Client(base_url=sys.argv[1]).vm("off").run("true")'
    const ran = await run(testPython(), ['-c', program, url], undefined, environment)
    expect(ran.stderr).toContain('VMNotRunningError')
  })

  it('sends a setup script as it was written', async () => {
    const script = '#!/bin/sh\nprintf "a\\n\\\\b"\n'
    const program =
      'import exedev, sys; exedev.Client(base_url=sys.argv[1]).new(name="set-up", setup_script=sys.argv[2], wait_until="created")'
    // A machine that does not start keeps its script.
    world.vmhost.failures.set('set-up', 'not today')
    const ran = await run(testPython(), ['-c', program, url, script], undefined, environment)
    expect(ran.stderr).toContain('set-up failed: not today')
    const [row] = await world.gateway.sql`select setup_script from machines where name = 'set-up'`
    expect(row?.setup_script).toBe(script)
  })
})
