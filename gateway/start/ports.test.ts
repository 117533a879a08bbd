import { createServer } from 'node:net'
import { expect, it } from 'vitest'
import { boundPorts } from './ports.ts'

it('ports are those that machines, which have no IPv6, could reach', async () => {
  const listening = await Promise.all(
    [undefined, '0.0.0.0', '127.0.0.78', '::1'].map(async (host) => {
      const server = createServer()
      await new Promise<void>((resolve) => server.listen({ port: 0, ...(host === undefined ? {} : { host }) }, resolve))
      return server
    }),
  )
  const closed = createServer()
  const ports = boundPorts('tcp', [...listening, closed])
  const [all, four, one] = listening.map((server) => (server.address() as { port: number }).port)
  expect(ports).toEqual([
    { protocol: 'tcp', port: all },
    { protocol: 'tcp', port: four },
    { protocol: 'tcp', port: one, address: '127.0.0.78' },
  ])
  for (const server of listening) server.close()
})
