import { chmodSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { startBrowser } from '../browser.ts'
import { killOne } from './crash.rounds.ts'
import { type Product, SERVER_ADDRESS, startProduct } from './product.ts'
import { findSleeper } from './sleep.cycles.ts'
import type { Sleeper } from './sleeper.ts'

/** A machine that sleeps and wakes with everything it was doing, whoever is killed meanwhile. */
let product: Product
let demo: Sleeper
const HOST = 'berth.example'
/** `npm run soak -- cycles` has the others. */
const CYCLES = 10

async function isAsleep(): Promise<void> {
  await demo.want('asleep')
  await demo.until('asleep')
}
async function isAwake(): Promise<void> {
  await demo.want('running')
  await demo.until('running')
}

beforeAll(async () => {
  product = await startProduct({ env: { BERTH_DOMAIN: HOST } })
  const made = await product.lobby('new demo --image minimal --memory 512M --cpu 1 --disk 2G')
  expect(made, made.stderr).toMatchObject({ status: 0 })
  demo = await findSleeper(product, 'demo')
  await demo.startCounting()
})
afterAll(() => product?.[Symbol.asyncDispose]())

describe('a machine that sleeps', () => {
  it('is no process any more', async () => {
    await isAsleep()
    expect(product.processes().hypervisors).toEqual([])
    expect(await demo.seen()).toMatchObject({ observed_asleep_because: 'told to', observed_reason: null })
    expect((await demo.seen()).observed_saved_bytes).toBeLessThan(256 * 2 ** 20)
    await isAwake()
    await demo.compare()
  })

  it(`counts on when it wakes, and has every file that it wrote, ${CYCLES} times`, async () => {
    for (let cycle = 0; cycle < CYCLES; cycle++) await demo.cycle()
  }, 1_800_000)

  it('is woken once by a browser, an SSH client and a command that come at the same moment, and answers all of them', async () => {
    // What the minimal image has of a web server is what Perl has.
    const serve = `$s = IO::Socket::INET->new(LocalPort => 8000, Listen => 9, ReuseAddr => 1) or die;
      while ($c = $s->accept) { <$c>; print $c "HTTP/1.0 200 OK\\r\\nContent-Type: text/html\\r\\n\\r\\n<h1>awake</h1>"; close $c }`
    await demo.inside(`setsid perl -MIO::Socket::INET -e '${serve}' > perl.log 2>&1 < /dev/null &`)
    await demo.inside(
      'n=0; until grep -q ":1F40 .* 0A " /proc/net/tcp; do n=$((n+1)); [ $n -lt 200 ] || exit 1; sleep 0.2; done',
    )
    const program = join(product.home, 'chromium')
    writeFileSync(program, `#!/bin/sh\nexec ip netns exec ${product.outsideNamespace} /usr/bin/chromium "$@"\n`)
    chmodSync(program, 0o755)
    const rules = [`MAP ${HOST} ${SERVER_ADDRESS}`, `MAP *.${HOST} ${SERVER_ADDRESS}`]
    await using browser = await startBrowser(rules, program)
    const page = await browser.open()
    page.setDefaultTimeout(120_000)
    await page.goto((JSON.parse((await product.lobby('browser --json')).stdout) as { url: string }).url)
    await page.getByRole('button', { name: 'Sign in' }).click()
    await page.getByRole('link', { name: 'demo', exact: true }).waitFor()
    const url = `https://demo.${HOST}:8443/`
    await page.goto(url)
    await page.getByRole('heading', { name: 'awake' }).waitFor()
    await page.goto('about:blank')
    await isAsleep()
    const wakings = () => product.sql()`select detail from events where kind = 'machine.woken'`
    const before = (await wakings()).length
    const [, ssh, command] = await Promise.all([
      page.goto(url),
      product.ssh([`demo@${SERVER_ADDRESS}`, 'cat /dev/shm/count']),
      product.lobby('ssh demo echo here'),
    ])
    await page.getByRole('heading', { name: 'awake' }).waitFor()
    expect(ssh).toMatchObject({ status: 0, stdout: expect.stringMatching(/^\d+\n$/) })
    expect(command).toMatchObject({ status: 0, stdout: 'here\n' })
    expect((await wakings()).length).toBe(before + 1)
    await demo.compare()
  })

  it('wakes the same for twenty who knock at once', async () => {
    await isAsleep()
    const knocking = Array.from({ length: 20 }, (_, n) => product.ssh([`demo@${SERVER_ADDRESS}`, `echo ${n}`]))
    const answers = await Promise.all(knocking)
    expect(answers.map(({ stdout, stderr }) => stdout || stderr)).toEqual(answers.map((_, n) => `${n}\n`))
    await demo.compare()
  })

  it('stays asleep, and wakes the same, when the server’s Berth is started anew', async () => {
    await isAsleep()
    await product.stop()
    await product.start()
    await demo.until('asleep')
    expect(product.processes().hypervisors).toEqual([])
    await isAwake()
    await demo.compare()
  })

  it('keeps all it was doing when its vmhost is killed while it falls asleep, and while it wakes', async () => {
    for (const afterMs of [100, 700, 1_500, 2_500]) {
      for (const state of ['asleep', 'running'] as const) {
        await demo.want(state)
        await new Promise((resolve) => setTimeout(resolve, afterMs))
        // The one before may have been killed so late that the next is not there yet.
        await expect.poll(() => killOne(product, 'vmhost', Math.random), { timeout: 60_000 }).toBe(true)
        await demo.until(state)
      }
      expect((await demo.seen()).observed_reason).toBeNull()
      await demo.compare()
    }
  })

  it('that is restarted boots from its disk, on which everything is that it had written', async () => {
    await demo.inside('head -c 300000 /dev/urandom > late; sha256sum late > late.sum')
    await isAsleep()
    await product.sql('berth_gateway')`
      update machines set desired_state = 'running', desired_boot = desired_boot + 1 where id = ${demo.id}`
    await demo.until('running')
    expect(await demo.inside('sha256sum -c late.sum')).toBe('late: OK')
    expect(await demo.inside('cat /dev/shm/count 2> /dev/null || echo gone')).toBe('gone')
  })
})
