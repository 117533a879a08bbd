import { expect, test } from 'vitest'
import { newWords, nothingTyped } from './words.ts'

test('only what was typed is said', () => {
  expect(newWords(nothingTyped())).toEqual(['new'])
  expect(newWords({ ...nothingTyped(), name: 'demo', memory: '8', disk: '512M' })).toEqual([
    'new',
    'demo',
    '--memory=8G',
    '--disk=512M',
  ])
})

test('tags, variables and the script arrive as they were typed', () => {
  const wish = {
    ...nothingTyped(),
    tags: 'web, staging',
    env: 'A=1\nB=x y=z \n\n',
    script: "#!/bin/sh\nprintf 'a\\n'\n",
  }
  expect(newWords(wish)).toEqual([
    'new',
    '--tag=web',
    '--tag=staging',
    '--env=A=1',
    '--env=B=x y=z ',
    "--setup-script=#!/bin/sh\nprintf 'a\\n'\n",
  ])
})
