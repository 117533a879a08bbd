import { readFileSync } from 'node:fs'
import { startTestGateway, type TestGateway, type TestGatewayOptions, type TestMachine } from '../../../test/gateway.ts'
import { parseKeyLine } from '../../accounts/public-key.ts'
import { type Machine, makeKeys, startMachine } from '../relay/fixtures.ts'

export type WithMachine = {
  gateway: TestGateway
  /** private key of an account, which the machine lets in as well, for jumps */
  key: string
  account: number
  /** for `addMachine`: a row that leads to the sshd */
  running: TestMachine
  sshd: Machine
} & AsyncDisposable

/** A gateway, an sshd of the host for the machines of an account, and the account's key. */
export async function startWithMachine(options: TestGatewayOptions = {}): Promise<WithMachine> {
  const stack = new AsyncDisposableStack()
  try {
    const keys = stack.use(makeKeys())
    const sshd = stack.use(await startMachine(keys))
    const gateway = stack.use(await startTestGateway({ machineSshPort: sshd.target.port, ...options }))
    const settings = await gateway.sql`select value from settings where key = 'gateway_public_key'`
    const key = gateway.makeKey('id')
    sshd.authorize([String(settings[0]?.value), gateway.publicKey(key)])
    const account = await gateway.addAccount({ keys: [key], owner: true })
    const hostKey = parseKeyLine(readFileSync(`${keys.hostKey}.pub`, 'utf8')).key.blob
    const running = { address: '127.0.0.1', loginUser: 'root', hostKey }
    return { gateway, key, account, running, sshd, [Symbol.asyncDispose]: () => stack.disposeAsync() }
  } catch (error) {
    await stack.disposeAsync()
    throw error
  }
}
