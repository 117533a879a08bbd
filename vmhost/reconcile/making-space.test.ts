import { expect, test } from 'vitest'
import { makeSpace, type SpaceMaking } from './making-space.ts'

test('a full store gives up what can be fetched, then what can be made again, and only then a machine in the trash', async () => {
  let freeBytes = 3
  const there = { images: 1, templates: 1, trash: 1 }
  const given: string[] = []
  const give = (what: keyof typeof there) => {
    if (there[what] === 0) return false
    there[what]--
    given.push(what)
    return true
  }
  const files = { record: { imageHash: 'of machine 7' } }
  const server = {
    store: {
      space: async () => ({ freeBytes, reserveBytes: 4, volumeFreeBytes: freeBytes, underlyingFreeBytes: undefined }),
      listMachines: async () => [7, 8],
      findMachine: async (id: number) => {
        if (id === 8) throw new Error('damaged')
        return files
      },
    },
    images: {
      giveUp: async (inUse: ReadonlySet<string>) => {
        expect([...inUse]).toEqual(['of machine 7'])
        return give('images')
      },
    },
    templates: { giveUp: async () => give('templates') },
    rows: { sacrificeTrash: async () => (give('trash') ? 9 : undefined) },
    log: { warn: () => {} },
  } as unknown as SpaceMaking
  for (let looks = 0; looks < 4; looks++) await makeSpace(server)
  expect(given).toEqual(['images', 'templates', 'trash'])
  there.trash = 1
  freeBytes = 4
  await makeSpace(server)
  expect(there.trash).toBe(1)
})
