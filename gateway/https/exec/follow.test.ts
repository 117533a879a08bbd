import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { createToken } from '../../accounts/tokens.ts'
import { machineRow } from '../../commands/testing/rows.ts'
import { startWorld, type World } from '../../commands/testing/world.ts'
import { Client } from './testing/client.ts'

let world: World
let token: string
const clients: Record<'h1' | 'h2', Client> = {} as typeof clients

beforeAll(async () => {
  world = await startWorld({ sshd: true, https: true })
  for (const protocol of ['h1', 'h2'] as const) clients[protocol] = await Client.of(world, protocol)
  const { accountId } = world.owner
  token = (await createToken(world.gateway.sql, { accountId, label: '', expiresInMs: 600_000 })).token
  await world.run('new demo')
})
afterAll(async () => {
  for (const client of Object.values(clients)) client.close()
  await world?.[Symbol.asyncDispose]()
})

const pieces = (text: string) =>
  text
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as Record<string, unknown>)

describe.each(['h1', 'h2'] as const)('a command that is followed over %s', (protocol) => {
  const follow = (line: string) => clients[protocol].start(line, { token, query: '?follow' })

  it('tells what it is doing, with the bytes of an image, and ends with its document', async () => {
    const name = `told-${protocol}`
    world.vmhost.paused = true
    const { sql } = world.gateway
    const stream = follow(`new ${name} --image debian:13`)
    await stream.until('waiting for its server')
    const row = await machineRow(world, name)
    await sql`insert into image_pulls (machine_id, step, done_bytes, total_bytes, layers_done, layers)
      values (${row?.id ?? 0}, 'fetching', 3145728, 12582912, 1, 4)`
    await sql`update machines set observed_stage = 'image' where id = ${row?.id ?? 0}`
    await stream.until('"done_bytes"')
    world.vmhost.paused = false
    world.vmhost.look()
    const { status, headers, text } = await stream.ended
    expect([status, headers['content-type']]).toEqual([200, 'application/x-ndjson'])
    expect(pieces(text)).toContainEqual({
      progress: `${name}: fetching its image, 3 MiB of 12 MiB, 1 of 4 layers`,
      done_bytes: 3_145_728,
      total_bytes: 12_582_912,
    })
    expect(pieces(text).at(-1)).toMatchObject({ result: { vm_name: name, status: 'running', image: 'debian:13' } })
  })

  it('waits as long as it takes, where a document alone is answered before the machine is ready', async () => {
    const name = `slow-${protocol}`
    world.vmhost.failures.set(name, 'the kernel panicked')
    const { text } = await follow(`new ${name}`).ended
    expect(pieces(text).at(-1)).toEqual({
      error: expect.stringContaining('the kernel panicked'),
      code: 'machine.failed',
    })
  })

  it('goes on with logs -f as the console grows, until the client leaves', async () => {
    const { sql } = world.gateway
    const machine = await machineRow(world, 'demo')
    const say = (seq: number, text: string) =>
      sql`insert into console_chunks (machine_id, seq, boot, bytes) values (${machine?.id ?? 0}, ${seq}, 1, ${Buffer.from(text)})`
    const first = protocol === 'h1' ? 1 : 101
    await say(first, 'booting\n')
    const stream = follow('logs demo -f')
    await stream.until('booting')
    await say(first + 1, 'and \x1b[31mready\n')
    await stream.until('ready')
    expect(pieces(stream.text()).every((piece) => Object.keys(piece).join() === 'text')).toBe(true)
    expect(stream.text()).not.toContain('u001b')
    stream.leave()
  })

  it('tells what a person should know besides', async () => {
    const name = `lost-${protocol}`
    await world.run(`new ${name}`)
    await world.run(`sleep ${name}`)
    const { text } = await follow(`stop ${name}`).ended
    expect(pieces(text)).toContainEqual({ remark: `${name} slept: what it had in memory is gone` })
    expect(pieces(text).at(-1)).toEqual({ result: { vm_name: name, status: 'stopped' } })
  })

  it('that fails before it has told anything has the status that it has elsewhere', async () => {
    expect(await follow('ls "').ended).toMatchObject({ status: 400 })
    expect(await follow('frobnicate').ended).toMatchObject({ status: 404 })
    const { status, text } = await follow('why nope').ended
    expect([status, JSON.parse(text)]).toMatchObject([422, { error: 'VM "nope" not found', code: 'machine.not_found' }])
  })

  it('that is ssh streams as it always does', async () => {
    const { text } = await clients[protocol].start("ssh demo 'echo out'", {
      token,
      query: '?follow',
      accept: 'application/x-ndjson',
    }).ended
    expect(pieces(text)).toEqual([{ stdout: Buffer.from('out\n').toString('base64') }, { exit_code: 0 }])
  })
})
