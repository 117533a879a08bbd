import { expect, test, vi } from 'vitest'
import { startNested } from './testing/nested.ts'
import { named, proof } from './testing/subjects.ts'

vi.setConfig({ testTimeout: 3_600_000 })

/**
 * Cloud Hypervisor for real on a server whose KVM runs nothing: the drivers' tests are run once more in a guest whose
 * emulated processor has virtualisation. A quarter of an hour on two quiet cores, and a guest there sleeps and wakes
 * twenty times, or as often as BERTH_TEST_SLEEP_CYCLES says, which takes as long again.
 */
test('Cloud Hypervisor passes the drivers’ tests in a guest that has KVM', async ({ skip }) => {
  const proved = await proof()
  if (named === undefined || proved === undefined) return skip('CLOUD_HYPERVISOR names no program')
  if (proved.problem === undefined)
    return skip('KVM works here, so driver.test.ts and linux-guest.test.ts have done it')
  if (!proved.isKvm) throw new Error(proved.problem)
  await using server = await startNested(named)
  const { status, output } = await server.run(insideNested(process.env.BERTH_TEST_SLEEP_CYCLES ?? '20'))
  expect(output).toMatch(/Tests .* passed/)
  expect(status).toBe(0)
})

/**
 * In a network namespace of its own, where the tests make their taps, and with many times as long as everything takes
 * elsewhere.
 */
function insideNested(sleepCycles: string): string {
  const environment = {
    CLOUD_HYPERVISOR: '/mnt/cloud-hypervisor',
    BERTH_TEST_CACHE: '/mnt/cache',
    TMPDIR: '/mnt/tmp',
    BERTH_TEST_KVM_LIMIT_MS: '300000',
    BERTH_TEST_NETWORK: 'own',
    BERTH_TEST_SLEEP_CYCLES: sleepCycles,
  }
  const words = Object.entries(environment).map(([name, value]) => `${name}=${value}`)
  const vitest = 'node_modules/vitest/vitest.mjs run --config vmhost/hypervisor/testing/nested.vitest.config.ts'
  return [
    'mkdir -p -m 1777 /mnt/tmp && cd /mnt/checkout && ip netns add berth && ip -n berth link set lo up',
    `ip netns exec berth env ${words.join(' ')} node ${vitest}`,
  ].join(' && ')
}
