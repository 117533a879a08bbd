import { defineConfig } from 'vitest/config'

/** Within nested.ts's server: what is tried of Cloud Hypervisor there, one at a time and with all the time it needs. */
export default defineConfig({
  test: {
    root: new URL('../../..', import.meta.url).pathname,
    pool: 'forks',
    maxWorkers: 1,
    reporters: ['verbose'],
    include: ['vmhost/hypervisor/{driver,linux-guest}.test.ts'],
    testNamePattern: 'Cloud Hypervisor',
    testTimeout: 600_000,
    hookTimeout: 600_000,
  },
})
