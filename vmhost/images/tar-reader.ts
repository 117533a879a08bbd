import { ImageError, printable } from './errors.ts'
import { limits } from './limits.ts'

/**
 * Reads tar archives as container tools write them: ustar, pax, GNU's long names and sparse files (old, 0.0, 0.1, 1.0).
 *
 * Our own, because the libraries read extended headers as text: a file capability is bytes, and so is a name in an old
 * encoding; they hold a header of any length in memory; and they know nothing of sparse files. Where programs differ over
 * what an archive says (which differences are what attacks are made of) this reads like Go's archive/tar, which is what
 * container engines use.
 * @see POSIX.1-2024, pax, "pax Interchange Format"; https://www.gnu.org/software/tar/manual/html_node/Standard.html
 */
export type TarEntry = {
  readonly type: TarType
  /** as it is written in the archive: each character is one byte */
  readonly path: string
  readonly linkPath: string
  readonly mode: number
  readonly uid: number
  readonly gid: number
  /** seconds since 1970 */
  readonly modifiedAt: number
  readonly major: number
  readonly minor: number
  /** of the file; what the archive holds of it is less where it is sparse */
  readonly sizeBytes: number
  /** ascending, not touching nothing but data; undefined: all of it is data */
  readonly segments: readonly Segment[] | undefined
  readonly attributes: ReadonlyMap<string, Buffer>
  /** The data that the archive holds, to be read before the next entry is asked for; what is left is passed over. */
  content(): AsyncGenerator<Buffer, void>
}
export type Segment = { readonly offsetBytes: number; readonly lengthBytes: number }
export type TarType = 'file' | 'link' | 'symlink' | 'character' | 'block' | 'directory' | 'fifo'

const BLOCK = 512
const types = new Map<string, TarType>([
  ['0', 'file'],
  ['\0', 'file'],
  ['7', 'file'],
  ['S', 'file'],
  ['1', 'link'],
  ['2', 'symlink'],
  ['3', 'character'],
  ['4', 'block'],
  ['5', 'directory'],
  ['6', 'fifo'],
])

/**
 * @param source read to its end, also beyond the archive's
 * @throws ImageError `image.invalid`, `image.too_large`
 */
export async function* readTar(source: AsyncIterable<Buffer>): AsyncGenerator<TarEntry, void> {
  const bytes = new ByteReader(source)
  const global: Extended = new Map()
  let extended: Extended = new Map()
  let longPath: string | undefined
  let longLink: string | undefined
  let sparse: Segment[] = []
  for (;;) {
    const header = await bytes.block()
    // Two blocks of zeros end an archive; one is enough for those who read it.
    if (!header || isZero(header)) break
    const typeFlag = header.toString('latin1', 156, 157)
    const storedBytes = numberAt(header, 124, 12)
    checkSum(header)
    if (typeFlag === 'x' || typeFlag === 'g') {
      const records = parseExtended(await bytes.padded(extendedLength(storedBytes)))
      if (typeFlag === 'x') {
        extended = records.map
        sparse = records.sparse
      } else for (const [key, value] of records.map) global.set(key, value)
      continue
    }
    if (typeFlag === 'L' || typeFlag === 'K') {
      const text = untilZero(await bytes.padded(extendedLength(storedBytes)))
      if (typeFlag === 'L') longPath = text
      else longLink = text
      continue
    }
    const type = types.get(typeFlag)
    if (type === undefined) throw invalid(`an entry of a kind that no file is of (${printable(typeFlag)})`)
    const all: Extended = new Map([...global, ...extended])
    const entry = makeEntry(header, { type, typeFlag, all, longPath, longLink, storedBytes })
    const data = bytes.data(entry.storedBytes)
    const shape = await shapeOf(header, typeFlag, all, sparse, entry.storedBytes, bytes, data)
    extended = new Map()
    sparse = []
    longPath = undefined
    longLink = undefined
    yield { ...entry.fields, ...shape, content: () => data.read() }
    await data.skip()
  }
  await bytes.drain()
}

type Extended = Map<string, Buffer>

function makeEntry(
  header: Buffer,
  from: {
    type: TarType
    typeFlag: string
    all: Extended
    longPath: string | undefined
    longLink: string | undefined
    storedBytes: number
  },
) {
  const { all } = from
  const text = (key: string) => all.get(key)?.toString('latin1')
  const isUstar = header.toString('latin1', 257, 263) === 'ustar\0'
  const prefix = isUstar ? untilZero(header.subarray(345, 500)) : ''
  const short = untilZero(header.subarray(0, 100))
  const path =
    text('GNU.sparse.name') ?? text('path') ?? from.longPath ?? (prefix === '' ? short : `${prefix}/${short}`)
  const linkPath = text('linkpath') ?? from.longLink ?? untilZero(header.subarray(157, 257))
  // Archives from before 1988 know directories by their last slash.
  const type = from.type === 'file' && path.endsWith('/') ? 'directory' : from.type
  const number = (key: string, at: number, length: number) => decimalOf(text(key)) ?? numberAt(header, at, length)
  const hasData = type === 'file'
  const attributes = new Map<string, Buffer>()
  // Of its own: the buffer that it was read from is a whole chunk of the layer, and would be kept with it.
  for (const [key, value] of all)
    if (key.startsWith('SCHILY.xattr.')) attributes.set(key.slice('SCHILY.xattr.'.length), Buffer.from(value))
  const isDevice = type === 'character' || type === 'block'
  return {
    storedBytes: hasData ? (decimalOf(text('size')) ?? from.storedBytes) : 0,
    fields: {
      type,
      path,
      linkPath,
      mode: numberAt(header, 100, 8) & 0o7777,
      uid: number('uid', 108, 8),
      gid: number('gid', 116, 8),
      modifiedAt: timeOf(text('mtime')) ?? numberAt(header, 136, 12),
      major: isDevice ? numberAt(header, 329, 8) : 0,
      minor: isDevice ? numberAt(header, 337, 8) : 0,
      attributes,
    },
  }
}

/** How large a file is, and which parts of it are there. */
async function shapeOf(
  header: Buffer,
  typeFlag: string,
  all: Extended,
  listed: Segment[],
  storedBytes: number,
  bytes: ByteReader,
  data: Data,
): Promise<{ sizeBytes: number; segments: Segment[] | undefined }> {
  const text = (key: string) => all.get(key)?.toString('latin1')
  if (typeFlag === 'S') {
    const { segments, sizeBytes } = await oldSparse(header, bytes)
    return { sizeBytes, segments: checkSegments(segments, sizeBytes, storedBytes) }
  }
  const realBytes = decimalOf(text('GNU.sparse.realsize')) ?? decimalOf(text('GNU.sparse.size'))
  if (text('GNU.sparse.major') === '1' && text('GNU.sparse.minor') === '0') {
    const segments = await data.sparseMap()
    return { sizeBytes: realBytes ?? 0, segments: checkSegments(segments, realBytes ?? 0, data.left) }
  }
  const map = text('GNU.sparse.map')
  if (realBytes === undefined || (map === undefined && listed.length === 0))
    return { sizeBytes: storedBytes, segments: undefined }
  const segments = map === undefined ? listed : pairs(map.split(','))
  return { sizeBytes: realBytes, segments: checkSegments(segments, realBytes, storedBytes) }
}

async function oldSparse(header: Buffer, bytes: ByteReader) {
  const segments: Segment[] = []
  const take = (block: Buffer, at: number, count: number) => {
    for (let n = 0; n < count && block[at + n * 24] !== 0; n++)
      segments.push({
        offsetBytes: numberAt(block, at + n * 24, 12),
        lengthBytes: numberAt(block, at + n * 24 + 12, 12),
      })
  }
  take(header, 386, 4)
  for (let more = header[482]; more; ) {
    const block = await bytes.block()
    if (!block) throw cutOff()
    take(block, 0, 21)
    if (segments.length > limits.sparseSegments) throw invalid('a sparse file in too many pieces')
    more = block[504]
  }
  return { segments, sizeBytes: numberAt(header, 483, 12) }
}

function pairs(numbers: readonly string[]): Segment[] {
  const segments: Segment[] = []
  for (let at = 0; at + 1 < numbers.length; at += 2)
    segments.push({ offsetBytes: decimalOf(numbers[at]) ?? -1, lengthBytes: decimalOf(numbers[at + 1]) ?? -1 })
  return segments
}

function checkSegments(segments: Segment[], sizeBytes: number, storedBytes: number): Segment[] {
  let end = 0
  let stored = 0
  if (segments.length > limits.sparseSegments) throw invalid('a sparse file in too many pieces')
  for (const { offsetBytes, lengthBytes } of segments) {
    if (!(offsetBytes >= end) || !(lengthBytes >= 0)) throw invalid('a sparse file whose pieces overlap')
    end = offsetBytes + lengthBytes
    stored += lengthBytes
  }
  // GNU tar lays each piece on blocks of its own, Go's reads them as one: where that makes a difference, who is right?
  const data = segments.filter(({ lengthBytes }) => lengthBytes > 0)
  if (data.slice(0, -1).some(({ lengthBytes }) => lengthBytes % BLOCK !== 0))
    throw invalid('a sparse file whose pieces are no blocks')
  if (end > sizeBytes || stored !== storedBytes) throw invalid('a sparse file whose pieces do not fit it')
  return data
}

/** `<length> <key>=<value>\n`, again and again; a length counts all of its record. */
function parseExtended(bytes: Buffer): { map: Extended; sparse: Segment[] } {
  const map: Extended = new Map()
  const offsets: string[] = []
  for (let at = 0; at < bytes.length; ) {
    const space = bytes.indexOf(0x20, at)
    const length = space < 0 ? undefined : decimalOf(bytes.toString('latin1', at, space))
    if (length === undefined || length < 5 || at + length > bytes.length || bytes[at + length - 1] !== 0x0a)
      throw invalid('an extended header that cannot be read')
    const record = bytes.subarray(space + 1, at + length - 1)
    const equals = record.indexOf(0x3d)
    if (equals < 1) throw invalid('an extended header that cannot be read')
    const key = record.toString('latin1', 0, equals)
    const value = record.subarray(equals + 1)
    if (key === 'GNU.sparse.offset' || key === 'GNU.sparse.numbytes') offsets.push(value.toString('latin1'))
    // An empty value takes back what a header for the whole archive said.
    else if (value.length === 0) map.delete(key)
    else map.set(key, value)
    at += length
  }
  return { map, sparse: pairs(offsets) }
}

function extendedLength(storedBytes: number): number {
  if (storedBytes <= limits.extendedHeaderBytes) return storedBytes
  throw invalid(`an extended header of more than ${limits.extendedHeaderBytes >> 10} KiB`)
}

/** Octal digits, or, with the first bit set, a number of two's complement (GNU, star). */
function numberAt(header: Buffer, at: number, length: number): number {
  const first = header[at] ?? 0
  if (first & 0x80) {
    let value = BigInt.asIntN(7, BigInt(first))
    for (let n = 1; n < length; n++) value = (value << 8n) | BigInt(header[at + n] ?? 0)
    const number = Number(value)
    if (!Number.isSafeInteger(number)) throw invalid('a number that is too large')
    return number
  }
  const text = untilZero(header.subarray(at, at + length)).trim()
  if (text === '') return 0
  if (!/^[0-7]+$/.test(text)) throw invalid('a header that is no header')
  return Number.parseInt(text, 8)
}

function decimalOf(text: string | undefined): number | undefined {
  if (text === undefined || !/^\d{1,16}$/.test(text)) return undefined
  const number = Number(text)
  return Number.isSafeInteger(number) ? number : undefined
}

function timeOf(text: string | undefined): number | undefined {
  return text !== undefined && /^-?\d{1,12}(\.\d*)?$/.test(text) ? Number(text) : undefined
}

/** Sum of the header's bytes, its own field as blanks; programs of old summed signed characters. */
function checkSum(header: Buffer): void {
  let unsigned = 0
  let signed = 0
  for (let n = 0; n < BLOCK; n++) {
    const byte = n >= 148 && n < 156 ? 0x20 : (header[n] ?? 0)
    unsigned += byte
    signed += byte > 127 ? byte - 256 : byte
  }
  const said = numberAt(header, 148, 8)
  if (said !== unsigned && said !== signed) throw invalid('a header that is no header')
}

function isZero(block: Buffer): boolean {
  return block.every((byte) => byte === 0)
}

function untilZero(bytes: Buffer): string {
  const end = bytes.indexOf(0)
  return bytes.toString('latin1', 0, end < 0 ? bytes.length : end)
}

function invalid(what: string): ImageError {
  return new ImageError('image.invalid', `A layer has ${what}`)
}

function cutOff(): ImageError {
  return new ImageError('image.invalid', 'A layer ends in the middle of a file')
}

/** What the archive holds of one entry, and the padding after it. */
class Data {
  readonly #bytes: ByteReader
  #left: number
  #padding: number

  constructor(bytes: ByteReader, lengthBytes: number) {
    this.#bytes = bytes
    this.#left = lengthBytes
    this.#padding = (BLOCK - (lengthBytes % BLOCK)) % BLOCK
  }

  get left(): number {
    return this.#left
  }

  async *read(): AsyncGenerator<Buffer, void> {
    while (this.#left > 0) {
      const chunk = await this.#bytes.some(this.#left)
      if (!chunk) throw cutOff()
      this.#left -= chunk.length
      yield chunk
    }
  }

  async skip(): Promise<void> {
    await this.#bytes.skip(this.#left + this.#padding)
    this.#left = 0
    this.#padding = 0
  }

  /** Sparse files, format 1.0: their map comes before the data, decimal lines, padded to a block. */
  async sparseMap(): Promise<Segment[]> {
    let text = ''
    const next = async () => {
      const block = this.#left >= BLOCK ? await this.#bytes.block() : undefined
      if (!block) throw invalid('a sparse file without a map')
      this.#left -= BLOCK
      return block.toString('latin1')
    }
    let wanted = 1
    let lines: string[] = []
    while (lines.length <= wanted) {
      text += await next()
      if (text.length > limits.sparseSegments * 30) throw invalid('a sparse file in too many pieces')
      lines = text.split('\n')
      const count = lines.length > 1 ? decimalOf(lines[0]) : 0
      if (count === undefined || count > limits.sparseSegments) throw invalid('a sparse file without a map')
      if (lines.length > 1) wanted = 1 + count * 2
    }
    return pairs(lines.slice(1, wanted))
  }
}

class ByteReader {
  readonly #source: AsyncIterator<Buffer>
  #chunk: Buffer = Buffer.alloc(0)

  constructor(source: AsyncIterable<Buffer>) {
    this.#source = source[Symbol.asyncIterator]()
  }

  data(lengthBytes: number): Data {
    return new Data(this, lengthBytes)
  }

  /** @returns undefined at the end of the source */
  async block(): Promise<Buffer | undefined> {
    if (this.#chunk.length === 0 && !(await this.#refill())) return undefined
    return await this.#exactly(BLOCK)
  }

  /** `length` bytes and the padding after them, which is passed over. */
  async padded(length: number): Promise<Buffer> {
    const bytes = await this.#exactly(length)
    await this.skip((BLOCK - (length % BLOCK)) % BLOCK)
    return bytes
  }

  /** Up to `most` bytes, whatever is at hand. */
  async some(most: number): Promise<Buffer | undefined> {
    if (this.#chunk.length === 0 && !(await this.#refill())) return undefined
    const taken = this.#chunk.subarray(0, most)
    this.#chunk = this.#chunk.subarray(taken.length)
    return taken
  }

  async skip(length: number): Promise<void> {
    for (let left = length; left > 0; ) {
      const chunk = await this.some(left)
      if (!chunk) throw cutOff()
      left -= chunk.length
    }
  }

  async drain(): Promise<void> {
    while (await this.#refill()) {
      // What follows the archive is padding, or nobody's business; it counts for the digest all the same.
    }
  }

  async #exactly(length: number): Promise<Buffer> {
    if (this.#chunk.length >= length) {
      const taken = this.#chunk.subarray(0, length)
      this.#chunk = this.#chunk.subarray(length)
      return taken
    }
    const parts: Buffer[] = []
    for (let left = length; left > 0; ) {
      const part = await this.some(left)
      if (!part) throw cutOff()
      parts.push(part)
      left -= part.length
    }
    return Buffer.concat(parts)
  }

  async #refill(): Promise<boolean> {
    for (;;) {
      const { done, value } = await this.#source.next()
      if (done) return false
      if (value.length === 0) continue
      this.#chunk = value
      return true
    }
  }
}
