import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { startProgress } from './progress.ts'

beforeEach(() => {
  vi.useFakeTimers()
})
afterEach(() => {
  vi.useRealTimers()
})

function output(isTTY: boolean, columns = 80) {
  const written: string[] = []
  return { written, isTTY, columns, write: (text: string) => written.push(text) }
}

test('off a terminal: a line when a stage begins, one when it ends, and a sign of life between', () => {
  const out = output(false)
  const progress = startProgress(out)
  const stage = progress.stage('kernel')
  stage.detail('12 of 34 MB')
  vi.advanceTimersByTime(25_000)
  stage.done()
  progress.close()
  expect(out.written).toEqual([
    'kernel …\n',
    expect.stringMatching(/^kernel: 12 of 34 MB, 2\d s so far\n$/),
    'kernel: 25.0 s\n',
  ])
})

test('on a terminal: one line that rewrites itself, says what comes next, and leaves a single line', () => {
  const out = output(true)
  const progress = startProgress(out)
  progress.next(['kernel', 'sshd'])
  const stage = progress.stage('kernel')
  stage.detail('12 of 34 MB')
  vi.advanceTimersByTime(1000)
  expect(out.written.at(-1)).toBe('\r\x1b[Kkernel: 12 of 34 MB, 1 s; then sshd')
  stage.done()
  progress.close()
  expect(out.written.filter((text) => text.includes('\n'))).toEqual(['kernel: 1.0 s\n'])
})

test('on a narrow terminal the line is cut, or it would fill the screen', () => {
  const out = output(true, 20)
  const progress = startProgress(out)
  progress.stage('a stage with a long title')
  vi.advanceTimersByTime(1000)
  progress.close()
  const drawn = out.written.find((text) => text.includes('a stage')) ?? ''
  expect(drawn.replace('\r\x1b[K', '').length).toBeLessThanOrEqual(19)
})

test('a stage that failed says so', () => {
  const out = output(false)
  const progress = startProgress(out)
  progress.stage('sshd').failed()
  progress.close()
  expect(out.written.at(-1)).toBe('sshd: 0.0 s (failed)\n')
})
