import { expect, test } from 'vitest'
import { HOST_PACKAGES, missingPackages, TEST_PACKAGES } from './packages.ts'

test('packages that are not there are named, in the order asked for', async () => {
  expect(await missingPackages(['berth-no-such-b', 'dpkg', 'berth-no-such-a'])).toEqual([
    'berth-no-such-b',
    'berth-no-such-a',
  ])
})

test('nothing is missing when all are there', async () => {
  expect(await missingPackages(['dpkg', 'coreutils'])).toEqual([])
})

test('the two lists name nothing twice', () => {
  const all = [...HOST_PACKAGES, ...TEST_PACKAGES]
  expect(new Set(all).size).toBe(all.length)
})
