import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { checkSynced, crashRound, settle, syncSomething } from './crash.rounds.ts'
import { type Product, SERVER_ADDRESS, startProduct } from './product.ts'

const ROUNDS = 5

let product: Product
beforeAll(async () => {
  product = await startProduct()
  const made = await product.lobby('new keep --image minimal --memory 512M --cpu 1 --disk 2G')
  expect(made, made.stderr).toMatchObject({ status: 0 })
})
afterAll(() => product?.[Symbol.asyncDispose]())

describe('kill -9', () => {
  it('of gateway and vmhost together stops no machine, and sessions work again at once', async () => {
    const keep = `keep@${SERVER_ADDRESS}`
    await product.ssh([keep, 'nohup sh -c "while :; do date +%s%N > alive; sleep 0.2; done" >/dev/null 2>&1 &'])
    const before = product.processes()
    for (const pid of [before.gateway, before.vmhost]) if (pid) process.kill(pid, 'SIGKILL')
    await expect
      .poll(async () => (await product.ssh(['-o', 'ConnectTimeout=2', keep, 'cat alive'])).status, { timeout: 120_000 })
      .toBe(0)
    expect(product.processes().hypervisors).toEqual(before.hypervisors)
    await settle(product)
    await product.ssh([keep, 'pkill -f alive || true'])
  })

  it('of the launcher leaves machines running, and the next start adopts them', async () => {
    const before = product.processes()
    process.kill(before.launcher, 'SIGKILL')
    for (const pid of [before.gateway, before.vmhost, before.postgres]) if (pid) process.kill(pid, 'SIGKILL')
    await product.start()
    expect(product.processes().hypervisors).toEqual(before.hypervisors)
    const reached = await product.ssh([`keep@${SERVER_ADDRESS}`, 'true'])
    expect(reached, reached.stderr).toMatchObject({ status: 0 })
    await settle(product)
  })

  it(`at random during new, rm and restart, ${ROUNDS} rounds, leaves what is wanted and nothing else`, async () => {
    const first = Date.now() % 100_000
    for (let round = 0; round < ROUNDS; round++) {
      await syncSomething(product, round)
      const story = await crashRound(product, first + round)
      try {
        await settle(product)
        const failed = await product.sql()<
          { name: string }[]
        >`select name from machines where observed_state = 'failed'`
        for (const { name } of failed)
          expect((await product.lobby(`restart ${name}`)).status, `restart ${name}`).toBe(0)
        await settle(product)
        await checkSynced(product)
      } catch (cause) {
        throw new Error(`round ${round}, seed ${first + round}, killed ${story.join(', ')}`, { cause })
      }
    }
  }, 1_800_000)
})
