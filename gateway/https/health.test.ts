import { expect, it } from 'vitest'
import { serveMetrics } from './health.ts'
import { get, OK, rawOrigin, world } from './testing/world.ts'

it('BERTH_METRICS serves requests by status, connections, handshakes, first bytes and certificate expiry', async () => {
  await using origin = await rawOrigin((wire) => wire.send(OK))
  await using proxy = await world({ originPort: origin.port })
  const wire = await proxy.dial()
  await wire.send(get('/1')).until(/ok$/)
  await wire.send(get('/2')).until(/(ok[\s\S]*){2}$/)
  const served = await serveMetrics([{ host: '127.0.0.1', port: 0 }], proxy.https.metrics.registry, async () => [])
  try {
    const read = async () => (await fetch(`http://127.0.0.1:${served.addresses[0]?.port}/metrics`)).text()
    const text = await read()
    for (const line of [
      'berth_https_requests_total{status="200",protocol="h1"} 2',
      'berth_https_connections 1',
      'berth_https_machine_connections 1',
      'berth_https_handshakes_total{result="done"} 1',
      'berth_https_first_byte_seconds_count 2',
      'berth_https_sent_bytes_total 4',
      'berth_https_certificate_expiry_seconds{name="example.test"} 1900000000',
    ]) {
      expect(text).toContain(line)
    }
    // Reading counts nothing again.
    expect(await read()).toContain('berth_https_requests_total{status="200",protocol="h1"} 2')
  } finally {
    await served.close()
  }
})

it('/healthz says that the process runs, /readyz what keeps it from serving', async () => {
  let reasons = ['The database does not answer']
  await using proxy = await world({ originPort: 1 })
  const served = await serveMetrics([{ host: '127.0.0.1', port: 0 }], proxy.https.metrics.registry, async () => reasons)
  try {
    const ask = async (path: string) => {
      const response = await fetch(`http://127.0.0.1:${served.addresses[0]?.port}${path}`)
      return [response.status, await response.text()]
    }
    expect(await ask('/healthz')).toEqual([200, 'ok\n'])
    expect(await ask('/readyz')).toEqual([503, 'The database does not answer\n'])
    reasons = []
    expect(await ask('/readyz')).toEqual([200, 'ready\n'])
    expect((await ask('/else'))[0]).toBe(404)
  } finally {
    await served.close()
  }
})
