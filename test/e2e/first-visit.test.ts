import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { CHECKOUT, type Product, SERVER_ADDRESS, startProduct } from './product.ts'
import { transcriptOf } from './transcript.ts'

/**
 * A first visit as the README tells it. The transcript in the README is this test's: `UPDATE_README=1` writes it,
 * otherwise the test compares, times and addresses aside.
 */
let product: Product
beforeAll(async () => {
  product = await startProduct()
})
afterAll(() => product?.[Symbol.asyncDispose]())

it('makes a machine, lands in it, finds systemd, a disk that lasts and a way out', async () => {
  const visit = product.terminal('bash', ['--norc', '--noprofile'], { columns: 80, rows: 40 })
  await visit.expect(/\$ /)
  visit.type(`PS1='$ '; ssh() { command ssh ${product.sshOptions.join(' ')} "$@"; }; clear\r`)
  await visit.expect(/clear\r\n[\s\S]*\$ /)
  const from = visit.output().length

  visit.type(`ssh ${SERVER_ADDRESS} new demo\r`)
  await visit.expect(/ssh .*demo@/, 120_000)
  await visit.expect(/\n\$ /)
  visit.type(`ssh demo@${SERVER_ADDRESS}\r`)
  await visit.expect(/dev@demo:~\$ /, 30_000)
  visit.type('echo "notes for tomorrow" > notes; uname -sr; findmnt -no SOURCE,FSTYPE /\r')
  await visit.expect(/ext4\r\n[\s\S]*\$ /)
  visit.type('exit\r')
  await visit.expect(/\n\$ /)
  visit.type(`ssh ${SERVER_ADDRESS} ls\r`)
  await visit.expect(/demo[\s\S]*running[\s\S]*\n\$ /)
  const transcript = transcriptOf(visit.output().slice(from), 80)
  visit.type('exit\r')
  await visit.ended

  const readme = join(CHECKOUT, 'README.md')
  const text = readFileSync(readme, 'utf8')
  const marked = /(<!-- transcript: first visit -->\n```console\n)([\s\S]*?)(\n```)/
  if (process.env.UPDATE_README)
    writeFileSync(
      readme,
      text.replace(marked, (_, before, _old, after) => before + transcript + after),
    )
  else expect(normal(transcript)).toBe(normal(marked.exec(text)?.[2] ?? ''))
}, 240_000)

it('greets on a terminal, completes, explains, and leaves with Ctrl-D', async () => {
  const lobby = product.terminal('ssh', ['-t', ...product.sshOptions, `lobby@${SERVER_ADDRESS}`])
  await lobby.expect(/[>$»] ?$/)
  lobby.type('who\t\r')
  await lobby.expect(/SHA256:/)
  lobby.type('help\r')
  await lobby.expect(/untrash/)
  lobby.type('\x04')
  expect(await lobby.ended).toBe(0)
})

/** What differs from run to run: times, addresses, kernel patch level. */
const normal = (text: string) =>
  text
    .replace(/\d+(\.\d+)? ?(ms|s|min)\b( ago)?/g, 'TIME')
    .replace(/10\.42\.\d+\.\d+/g, 'ADDRESS')
    .replace(/6\.12\.[\w.+-]+/g, 'KERNEL')
    .replace(/[ \t]+/g, ' ')
    .trim()
