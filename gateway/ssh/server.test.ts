import { describe, expect, it } from 'vitest'
import { startTestGateway } from '../../test/gateway.ts'

describe('signing in', () => {
  it('lets a known key into the lobby and passes line and exit status', async () => {
    await using gateway = await startTestGateway()
    const key = gateway.makeKey('id')
    const account = await gateway.addAccount({ keys: [key], owner: true })
    expect(await gateway.ssh({ key, command: ['ls', '-l'] })).toMatchObject({
      status: 0,
      stdout: `lobby of ${account}: ls -l\n`,
      stderr: '',
    })
    expect((await gateway.ssh({ key, user: 'berth', command: ['fail'] })).status).toBe(1)
  })
})
