import { chmodSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { connect } from '../migrations/connect.ts'
import { embeddedUrl, startEmbedded, stopEmbedded } from '../migrations/embedded.ts'
import { migrate } from '../migrations/migrate.ts'

/** One real server for the whole run, with a migrated template that every test's database is copied from. */
export async function setup() {
  const directory = mkdtempSync(join(tmpdir(), 'berth-test-'))
  chmodSync(directory, 0o755)
  await startEmbedded(directory)
  const admin = connect({ url: embeddedUrl(directory, 'postgres'), role: 'owner', max: 1 })
  await admin.unsafe('create database berth_template')
  await admin.end()
  const template = connect({ url: embeddedUrl(directory, 'berth_template'), role: 'owner', max: 1 })
  await migrate(template)
  await template.end()
  process.env.BERTH_TEST_POSTGRES = directory
  return async () => {
    await stopEmbedded(directory)
    rmSync(directory, { recursive: true, force: true })
  }
}
