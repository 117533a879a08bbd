import { defineConfig } from 'vite'

/** The dashboard's build; web/build.ts runs it, compresses what comes out and writes down what the gateway serves. */
export default defineConfig({
  root: import.meta.dirname,
  base: '/',
  publicDir: false,
  logLevel: 'warn',
  oxc: { jsx: { runtime: 'automatic', importSource: 'preact', development: false } },
  build: {
    // Those that have the colour function and the selectors of style/: Chromium 111, Firefox 121, Safari 16.4.
    target: ['chrome111', 'firefox121', 'safari16.4'],
    manifest: 'manifest.json',
    // Everything is a file of its own under `self`: the policy of the pages knows no data: addresses.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    reportCompressedSize: false,
    rolldownOptions: {
      input: `${import.meta.dirname}/src/main.tsx`,
      checks: { bundlerTimings: false },
      // What pages share is small: in a file each, asking for it and beginning it takes longer than all of it together.
      output: {
        codeSplitting: {
          groups: [{ name: 'parts', test: /\/src\/(parts|api)\/(?!.*[pP]lot).*\.tsx?$/, minShareCount: 3 }],
        },
      },
    },
  },
})
