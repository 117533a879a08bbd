import { expect, test } from 'vitest'
import { GIBIBYTE, resizeOf, toldOf } from './resize.ts'

const demo = {
  vm_name: 'demo',
  allocated_cpus: 2,
  memory_capacity_bytes: 1.5 * GIBIBYTE,
  disk_capacity_bytes: 20 * GIBIBYTE,
}

test('what is typed is asked for, and what it was takes it back', () => {
  expect(resizeOf(demo, { cpus: '4', memory: '2.5', disk: '' })).toEqual({
    words: ['resize', 'demo', '--cpu=4', '--memory=2560M'],
    undo: ['resize', 'demo', '--cpu=2', '--memory=1536M'],
    growsDisk: undefined,
    problem: undefined,
  })
})

test('a disk that grows is not taken back, and one does not shrink', () => {
  const grown = resizeOf(demo, { cpus: '4', memory: '', disk: '40' })
  expect(grown).toMatchObject({ words: ['resize', 'demo', '--cpu=4', '--disk=40960M'], undo: undefined, growsDisk: 40 })
  expect(resizeOf(demo, { cpus: '', memory: '', disk: '10' }).problem).toMatch(/20 GiB, and a disk only grows/)
})

test.each(['0', '1.5', 'two'])('%s CPUs are none', (cpus) => {
  expect(resizeOf(demo, { cpus, memory: '', disk: '' }).problem).toMatch(/whole number/)
})

test('nothing typed asks for nothing', () => {
  expect(resizeOf(demo, { cpus: '', memory: '', disk: '' }).problem).toBe('')
})

test('it is said what is live and what waits for the next start', () => {
  const sizes = { allocated_cpus: 4, memory_capacity_bytes: 0, disk_capacity_bytes: 0 }
  expect(toldOf('demo', { ...sizes, at_next_start: [] })).toEqual(['demo has its new size.'])
  expect(toldOf('demo', { ...sizes, at_next_start: ['cpu', 'memory'], disk: 'grown' })).toEqual([
    'demo has its CPUs and its memory from its next start on: restart demo',
    'The disk of demo has grown, and its filesystem with it.',
  ])
})
