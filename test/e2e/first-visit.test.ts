import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { CHECKOUT, type Product, SERVER_ADDRESS, startProduct } from './product.ts'
import { transcriptOf } from './transcript.ts'

/**
 * A first visit as the README tells it. The transcript in the README is this test's: `UPDATE_README=1` writes it,
 * otherwise the test compares, times and addresses aside.
 */
const HOST = 'berth.example'
let product: Product
beforeAll(async () => {
  product = await startProduct({ env: { BERTH_DOMAIN: HOST } })
})
afterAll(() => product?.[Symbol.asyncDispose]())

it('makes a machine, lands in it, finds systemd, a disk that lasts and a way out', async () => {
  // No name server here: what a user's DNS would say stands in the client's configuration.
  const config = join(product.home, 'config')
  const lines = [`HostName ${SERVER_ADDRESS}`, `IdentityFile ${product.home}/id_ed25519`, 'IdentitiesOnly yes']
  const trust = ['StrictHostKeyChecking accept-new', `UserKnownHostsFile ${product.home}/known_hosts`, 'LogLevel ERROR']
  writeFileSync(config, `Host ${HOST}\n${[...lines, ...trust].join('\n')}\n`)
  const visit = product.terminal('bash', ['--norc', '--noprofile'], { columns: 80, rows: 40 })
  await visit.expect(/[#$] $/)
  const setUp = `bind 'set enable-bracketed-paste off'; PS1='$ '; ssh() { command ssh -F ${config} "$@"; }; echo set up`
  visit.type(`${setUp}\r`)
  await visit.expect(/set up\r\n\$ $/)
  const from = visit.output().length
  const type = async (line: string, answer: RegExp) => {
    visit.type(`${line}\r`)
    await visit.expect(answer, 120_000)
  }

  await type(`ssh -p 2222 ${HOST} new demo`, /ssh .*demo@[\s\S]*\n\$ $/)
  await type(`ssh -p 2222 demo@${HOST}`, /dev@demo[^\r\n]*\$ (\x1b\S+)?$/)
  await type('uname -sr; findmnt -no SOURCE,FSTYPE /; sudo id -un', /\/dev\/vda ext4\r\nroot\r\n[\s\S]*\$ (\x1b\S+)?$/)
  await type('echo "for tomorrow" > notes; exit', /\n\$ $/)
  await type(`ssh -p 2222 demo@${HOST} cat notes`, /\nfor tomorrow\r\n\$ $/)
  await type(`ssh -p 2222 ${HOST} ls`, /running[\s\S]*\n\$ $/)
  const transcript = transcriptOf(`$ ${visit.output().slice(from)}`, 80)
  visit.type('exit\r')
  await visit.ended

  const readme = join(CHECKOUT, 'README.md')
  const text = readFileSync(readme, 'utf8')
  const marked = /(<!-- transcript: first visit -->\n\n```console\n)([\s\S]*?)(```)/
  if (process.env.UPDATE_README)
    writeFileSync(
      readme,
      text.replace(marked, (_, before, _old, after) => `${before}${transcript}\n${after}`),
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
