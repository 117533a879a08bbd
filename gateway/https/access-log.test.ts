import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, it } from 'vitest'
import { accessLine, accessLog } from './access-log.ts'
import type { Finished } from './proxy/context.ts'

const exchange: Finished = {
  protocol: 'h1',
  remoteAddress: '::1',
  method: 'GET',
  host: 'demo.example.test',
  path: '/a?token=secret',
  status: 200,
  machineId: 7,
  user: 'a"b\\c\n',
  startedAtMs: 10,
  firstByteAtMs: 11.2345,
  sentBytes: 5,
  upgraded: false,
  cut: undefined,
}

it('a line holds no link that opens something', () => {
  for (const path of ['/__berth/link/SECRET', '/login/SECRET', '/invitation/SECRET?x'])
    expect(accessLine({ ...exchange, path }, 1, 12)).not.toContain('SECRET')
  expect(JSON.parse(accessLine({ ...exchange, path: '/login' }, 1, 12)).path).toBe('/login')
})

it('a line is JSON whatever a client wrote, and holds no query', () => {
  expect(JSON.parse(accessLine(exchange, 1, 12))).toEqual({
    level: 30,
    time: 1,
    part: 'access',
    from: '::1',
    protocol: 'h1',
    method: 'GET',
    host: 'demo.example.test',
    path: '/a',
    status: 200,
    machine: 7,
    user: 'a"b\\c\n',
    ms: 2,
    firstByteMs: 1.23,
    sentBytes: 5,
  })
})

it('closing writes what was gathered', () => {
  const directory = mkdtempSync(join(tmpdir(), 'berth-access-'))
  try {
    const file = join(directory, 'log')
    const log = accessLog(file)
    for (let n = 0; n < 1000; n++) log.write({ ...exchange, path: `/${n}` })
    log.close()
    const lines = readFileSync(file, 'utf8').trimEnd().split('\n')
    expect(lines).toHaveLength(1000)
    expect(JSON.parse(String(lines[999])).path).toBe('/999')
  } finally {
    rmSync(directory, { recursive: true })
  }
})
