import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { completeLine } from './complete.ts'
import { commandsFor } from './table.ts'
import { startWorld, type World } from './testing/world.ts'

describe('completion', () => {
  let world: World
  beforeAll(async () => {
    world = await startWorld()
    for (const name of ['demo', 'demo-2', 'api']) await world.run(`new ${name} --memory 512M --no-wait`)
    for (const name of ['tossed', 'thrown']) {
      await world.run(`new ${name} --memory 512M --no-wait`)
      await world.run(`rm ${name}`)
    }
  })
  afterAll(() => world?.[Symbol.asyncDispose]())

  const complete = (line: string, caller = world.owner) =>
    completeLine(commandsFor(caller), { app: world.app, caller }, line)

  it.each([
    ['unt', 0, ['untrash ']],
    ['ssh-k', 0, ['ssh-key ']],
    ['ssh-key re', 8, ['remove ', 'rename ']],
    ['ssh d', 4, ['demo ', 'demo-2 ']],
    ['ssh demo d', 9, []],
    ['stop demo d', 10, ['demo-2 ']],
    ['stop demo demo', 10, ['demo-2 ']],
    ['rename ', 7, ['api ', 'demo ', 'demo-2 ']],
    ['rename demo ', 12, []],
    ['untrash ', 8, ['thrown ', 'tossed ']],
    ['untrash thrown ', 15, ['tossed ']],
    ['new --im', 4, ['--image=']],
    ['new --image=', 4, ['--image=base ', '--image=minimal ']],
    ['new --image mi', 12, ['minimal ']],
    ['new --no-', 4, ['--no-wait ']],
    ['new --sleep-after ', 18, ['never ']],
    ['ls --group=st', 3, ['--group=status ']],
    ['ls -- --', 6, []],
    ["ssh 'dem", 4, ['demo ', 'demo-2 ']],
    ['defaults write im', 15, ['image ']],
    ['host drain ', 11, ['server1 ']],
    ['doc st', 4, ['start ', 'states ']],
    ['nothing x', 8, []],
    ['help ssh-c', 5, ['ssh-config ']],
  ])('of %j', async (line, start, candidates) => {
    expect(await complete(line)).toEqual({ start, candidates })
  })

  it('offers nobody the machines of others, nor the commands of the operator', async () => {
    const stranger = await world.account()
    expect((await complete('ssh ', stranger)).candidates).toEqual([])
    expect((await complete('hos', stranger)).candidates).toEqual([])
    expect((await complete('hos')).candidates).toEqual(['host '])
  })
})
