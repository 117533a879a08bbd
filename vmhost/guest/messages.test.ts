import { readFileSync } from 'node:fs'
import { expect, test } from 'vitest'
import { agentVsockPort } from './channel.ts'
import { maxFrameBytes } from './frames.ts'
import { fieldTag, messageType, protocolVersion } from './messages.ts'

const header = readFileSync(new URL('../../init/protocol.h', import.meta.url), 'utf8')

/** `MSG_POWEROFF_BEGUN = 131` as ['poweroffbegun', 131] */
function constants(prefix: string): Map<string, number> {
  const found = header.matchAll(new RegExp(`^\\s+${prefix}([A-Z0-9_]+) = (\\d+),`, 'gm'))
  return new Map([...found].map(([, name = '', value]) => [name.replaceAll('_', '').toLowerCase(), Number(value)]))
}

const lower = (numbers: Record<string, number>) =>
  new Map(Object.entries(numbers).map(([name, value]) => [name.toLowerCase(), value]))

test('both sides of the control channel have the same numbers', () => {
  expect(lower(messageType)).toEqual(constants('MSG_'))
  expect(lower(fieldTag)).toEqual(constants('TAG_'))
  expect(header).toContain(`PROTOCOL_VERSION = ${protocolVersion},`)
  expect(header).toContain(`AGENT_VSOCK_PORT = ${agentVsockPort},`)
  expect(header).toContain(`FRAME_MOST = ${maxFrameBytes / 1024} * 1024,`)
})
