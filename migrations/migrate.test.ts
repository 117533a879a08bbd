import { mkdtempSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { testDatabase } from '../test/database.ts'
import { migrate, readMigrations } from './migrate.ts'

describe('readMigrations', () => {
  it.each([
    ['a gap', ['0001_a.sql', '0003_c.sql']],
    ['a repeat', ['0001_a.sql', '0001_b.sql']],
    ['a name without a number', ['first.sql']],
  ])('refuses %s', (_what, files) => {
    const directory = mkdtempSync(join(tmpdir(), 'berth-migrations-'))
    for (const file of files) writeFileSync(join(directory, file), 'select 1')
    expect(() => readMigrations(directory)).toThrow(/0003_c|0001_b|first/)
  })
})

describe('migrate', () => {
  const next = (text: string) => {
    const landed = readMigrations()
    return [...landed, { number: landed.length + 1, name: 'next', text, sha256: text }]
  }

  it('applies each migration once when two processes start together', async () => {
    await using db = await testDatabase()
    const migrations = next('create table once (n int); insert into once values (1)')
    const done = await Promise.all([migrate(db.as('owner'), migrations), migrate(db.as('owner'), migrations)])
    expect(done.flat()).toEqual([migrations.length])
    expect(await db.as('owner')`select * from once`).toHaveLength(1)
  })

  it('leaves nothing half made when a migration fails, and goes on after it was mended', async () => {
    await using db = await testDatabase()
    await expect(migrate(db.as('owner'), next('create table half (n int); select 1/0'))).rejects.toThrow(
      /next\) failed/,
    )
    expect(await db.as('owner')`select to_regclass('half') as half`).toEqual([{ half: null }])
    expect(await migrate(db.as('owner'), next('create table half (n int)'))).toHaveLength(1)
  })

  it('refuses a landed migration that was edited, and a database newer than itself', async () => {
    await using db = await testDatabase()
    const [first, ...rest] = readMigrations()
    if (!first) throw new Error('no migrations')
    await expect(migrate(db.as('owner'), [{ ...first, sha256: 'edited' }, ...rest])).rejects.toThrow(/edited/)
    await expect(migrate(db.as('owner'), [])).rejects.toThrow(/newer Berth/)
  })
})
