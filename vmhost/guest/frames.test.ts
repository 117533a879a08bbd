import { execFileSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { beforeAll, expect, test } from 'vitest'
import { buildInit } from '../../init/build.ts'
import { encodeFrame, type Frame, FrameReader, maxFrameBytes } from './frames.ts'

let pure = ''
beforeAll(() => {
  pure = buildInit('pure')
}, 120_000)

/** mulberry32: the same frames on every machine. */
function random(seed: number): () => number {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}

function someFrame(next: () => number): Frame {
  const fields = Array.from({ length: Math.floor(next() * 6) }, () => {
    const bytes = Buffer.alloc(Math.floor(next() ** 4 * 5000))
    for (let i = 0; i < bytes.length; i++) bytes[i] = next() < 0.3 ? 0 : Math.floor(next() * 256)
    return { tag: Math.floor(next() * 256), bytes }
  })
  return { type: Math.floor(next() * 256), id: Math.floor(next() * 2 ** 32), fields }
}

const shown = (frame: Frame) =>
  [frame.type, frame.id, ...frame.fields.map((field) => `${field.tag}:${field.bytes.toString('hex')}`)].join(' ')

test('frames survive any split of the stream, and both sides read the same', () => {
  const next = random(7)
  const frames = Array.from({ length: 200 }, () => someFrame(next))
  const stream = Buffer.concat(frames.map(encodeFrame))
  const reader = new FrameReader()
  const read: Frame[] = []
  for (let at = 0; at < stream.length; ) {
    const end = at + 1 + Math.floor(next() * 3000)
    read.push(...reader.push(stream.subarray(at, end)))
    at = end
  }
  expect(read.map(shown)).toEqual(frames.map(shown))
  expect(reader.dropped).toBe(0)
  const theirs = execFileSync(pure, ['frames'], { input: stream, encoding: 'utf8', maxBuffer: 64e6 })
  expect(theirs.trimEnd().split('\n')).toEqual(frames.map(shown))
})

test('a damaged frame is dropped and the next one read', () => {
  const next = random(11)
  for (let round = 0; round < 300; round++) {
    const [first, second] = [encodeFrame(someFrame(next)), encodeFrame({ type: 1, id: round, fields: [] })]
    first[Math.floor(next() * (first.length - 1))] = Math.floor(next() * 256)
    const cut = next() < 0.5 ? first.subarray(0, Math.floor(next() * first.length)) : first
    const read = new FrameReader().push(Buffer.concat([cut, Buffer.alloc(1), second]))
    expect(read.at(-1)).toEqual({ type: 1, id: round, fields: [] })
  }
})

test('an endless frame costs no memory, and what follows its end is read', () => {
  const reader = new FrameReader()
  const noise = randomBytes(1 << 16).map((byte) => byte || 1)
  for (let i = 0; i < 100; i++) expect(reader.push(Buffer.from(noise))).toEqual([])
  expect(reader.push(Buffer.concat([Buffer.alloc(1), encodeFrame({ type: 2, id: 3, fields: [] })]))).toHaveLength(1)
  expect(reader.dropped).toBe(1)
})

test('a frame over the limit is refused by its sender', () => {
  const frame = (length: number) => ({ type: 1, id: 1, fields: [{ tag: 1, bytes: Buffer.alloc(length) }] })
  expect(new FrameReader().push(encodeFrame(frame(maxFrameBytes - 14)))).toHaveLength(1)
  expect(() => encodeFrame(frame(maxFrameBytes - 13))).toThrow(/over the limit/)
})
