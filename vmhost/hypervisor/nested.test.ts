import { expect, test, vi } from 'vitest'
import { named, proof } from './testing/named.ts'
import { insideNested, startNested } from './testing/nested.ts'

vi.setConfig({ testTimeout: 3_600_000 })

/**
 * Cloud Hypervisor for real on a server whose KVM runs nothing: the drivers' tests are run once more in a guest whose
 * emulated processor has virtualisation. A quarter of an hour on two quiet cores; that a guest there sleeps and wakes
 * over and over is `npm run soak -- cloud-hypervisor`.
 */
test('Cloud Hypervisor passes the drivers’ tests in a guest that has KVM', async ({ skip }) => {
  const proved = await proof()
  if (named === undefined || proved === undefined) return skip('CLOUD_HYPERVISOR names no program')
  if (proved.problem === undefined)
    return skip('KVM works here, so driver.test.ts and linux-guest.test.ts have done it')
  if (!proved.isKvm) throw new Error(proved.problem)
  await using server = await startNested(named)
  const config = 'vmhost/hypervisor/testing/nested.vitest.config.ts'
  const { status, output } = await server.run(
    insideNested(['node_modules/vitest/vitest.mjs', 'run', '--config', config]),
  )
  expect(output).toMatch(/Tests .* passed/)
  expect(status).toBe(0)
})
