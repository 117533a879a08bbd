import { defineConfig } from 'vitest/config'

/**
 * One config for both projects: `unit` stands beside the code, `e2e` boots machines. Two files at a time whatever the
 * machine has: tests wait as much as they compute, and an emulated guest takes a core of its own.
 */
export default defineConfig({
  test: {
    root: new URL('..', import.meta.url).pathname,
    pool: 'forks',
    maxWorkers: 2,
    // What is to happen happens later beside others.
    expect: { poll: { timeout: 60_000 } },
    projects: [
      {
        extends: true,
        test: {
          name: 'unit',
          include: ['{gateway,vmhost,init,migrations,web}/**/*.test.ts', 'test/unit/**/*.test.ts'],
          globalSetup: ['test/web.setup.ts', 'test/postgres.setup.ts'],
          testTimeout: 120_000,
          hookTimeout: 120_000,
        },
      },
      {
        extends: true,
        test: {
          name: 'e2e',
          include: ['test/e2e/**/*.test.ts'],
          testTimeout: 600_000,
          hookTimeout: 600_000,
        },
      },
    ],
  },
})
