import { expect, test, vi } from 'vitest'
import { startNested } from './testing/nested.ts'
import { named, proof } from './testing/subjects.ts'

vi.setConfig({ testTimeout: 3_600_000 })

/**
 * Cloud Hypervisor for real on a server whose KVM runs nothing: the drivers' tests are run once more in a guest whose
 * emulated processor has virtualisation. A quarter of an hour on two quiet cores.
 */
test('Cloud Hypervisor passes the drivers’ tests in a guest that has KVM', async ({ skip }) => {
  const proved = await proof()
  if (named === undefined || proved === undefined) return skip('CLOUD_HYPERVISOR names no program')
  if (proved.problem === undefined)
    return skip('KVM works here, so driver.test.ts and linux-guest.test.ts have done it')
  if (!proved.isKvm) throw new Error(proved.problem)
  await using server = await startNested(named)
  const { status, output } = await server.run(insideNested)
  expect(output).toMatch(/Tests .* passed/)
  expect(status).toBe(0)
})

/** A tap in a namespace of its own, and a machine's limits, as many times as long as everything takes there. */
const insideNested = [
  'ip netns add berth && ip netns exec berth sh -ec "',
  'ip tuntap add dev vm41 mode tap user 2000041 vnet_hdr; ip link set vm41 up;',
  'cd /mnt/checkout;',
  'export CLOUD_HYPERVISOR=/mnt/cloud-hypervisor BERTH_TEST_CACHE=/mnt/cache TMPDIR=/mnt/tmp BERTH_TEST_KVM_LIMIT_MS=300000;',
  'mkdir -p -m 1777 /mnt/tmp;',
  'exec node node_modules/vitest/vitest.mjs run --config vmhost/hypervisor/testing/nested.vitest.config.ts"',
].join(' ')
