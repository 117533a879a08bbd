import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

/** One entry of an archive, as raw as it comes: nothing here refuses what no honest tool would write. */
export type RawEntry = {
  path: string
  /** default: a file */
  type?: string
  content?: string | Buffer
  linkPath?: string
  mode?: number
  uid?: number
  gid?: number
  modifiedAt?: number
  device?: [number, number]
  /** extended header in front of it */
  records?: Record<string, string | Buffer>
  /** instead of the content's */
  sizeBytes?: number
}

/** An archive of these entries. */
export function rawTar(entries: readonly RawEntry[]): Buffer {
  return Buffer.concat([...entries.map(rawEntry), Buffer.alloc(1024)])
}

export function rawEntry(entry: RawEntry): Buffer {
  const content = Buffer.from(entry.content ?? '')
  const parts: Buffer[] = []
  if (entry.records) {
    const body = Buffer.concat(Object.entries(entry.records).map(([key, value]) => rawRecord(key, value)))
    parts.push(rawHeader({ path: 'PaxHeaders/x', type: 'x', sizeBytes: body.length }), padded(body))
  }
  parts.push(rawHeader({ ...entry, sizeBytes: entry.sizeBytes ?? content.length }), padded(content))
  return Buffer.concat(parts)
}

export function rawHeader(entry: RawEntry): Buffer {
  const header = Buffer.alloc(512)
  const octal = (value: number, at: number, length: number) =>
    header.write(`${value.toString(8).padStart(length - 1, '0')}\0`, at, 'latin1')
  header.write(entry.path, 0, 100, 'utf8')
  octal(entry.mode ?? (entry.type === '5' ? 0o755 : 0o644), 100, 8)
  octal(entry.uid ?? 0, 108, 8)
  octal(entry.gid ?? 0, 116, 8)
  octal(entry.sizeBytes ?? 0, 124, 12)
  octal(entry.modifiedAt ?? 1_700_000_000, 136, 12)
  header.write('        ', 148, 'latin1')
  header.write(entry.type ?? '0', 156, 'latin1')
  header.write(entry.linkPath ?? '', 157, 100, 'utf8')
  header.write('ustar\x0000', 257, 'latin1')
  if (entry.device) {
    octal(entry.device[0], 329, 8)
    octal(entry.device[1], 337, 8)
  }
  const sum = header.reduce((all, byte) => all + byte, 0)
  header.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 'latin1')
  return header
}

export function rawRecord(key: string, value: string | Buffer): Buffer {
  const rest = Buffer.concat([Buffer.from(` ${key}=`), Buffer.from(value), Buffer.from('\n')])
  let length = rest.length + 1
  while (length !== rest.length + String(length).length) length = rest.length + String(length).length
  return Buffer.concat([Buffer.from(String(length)), rest])
}

function padded(bytes: Buffer): Buffer {
  return Buffer.concat([bytes, Buffer.alloc((512 - (bytes.length % 512)) % 512)])
}

/**
 * What GNU tar makes of a folder that this shell script fills.
 * @param options of tar's, beside those that name the folder and the archive
 */
export function gnuTar(script: string, options: readonly string[] = []): Buffer {
  const folder = mkdtempSync(join(tmpdir(), 'berth-layer-'))
  try {
    execFileSync('sh', ['-ec', script], { cwd: folder })
    return execFileSync('tar', ['--create', '--directory', folder, '--sort=name', ...options, '.'], {
      maxBuffer: 1 << 28,
      env: { ...process.env, LC_ALL: 'C.UTF-8' },
    })
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}
