import type { Sql } from '../../../migrations/connect.ts'
import type { Log } from '../../log.ts'
import type { News } from '../../news.ts'

/** Something that a directory's servers will look for, to see that a name is ours. */
export type Challenge =
  | { kind: 'dns-01'; name: string; value: string }
  | { kind: 'http-01' | 'tls-alpn-01'; name: string; token: string; value: string }

/** The challenges of one moment. */
export type OpenChallenges = {
  /** values of the TXT records at a name */
  txt(name: string): readonly string[]
  /** the key authorization that HTTP-01 wants of a host for a token */
  http(host: string, token: string): string | undefined
  /** the key authorization behind a host's TLS-ALPN-01 certificate */
  alpn(host: string): string | undefined
}

export type ChallengesOptions = { sql: Sql; news: News; log: Log }

/** Orders open at once are few; more rows than this are somebody's mistake. */
const OPEN_MOST = 1000

/**
 * The challenges that any gateway of the installation has open. Whoever answers for one reads the table anew, since
 * another gateway may have opened it a moment ago; however many ask, one query runs at a time and the next waits for
 * all who came meanwhile.
 */
export class Challenges {
  readonly #options: ChallengesOptions
  readonly #stop: () => void
  #reading: Promise<OpenChallenges> | undefined
  #next: Promise<OpenChallenges> | undefined
  /** as they were read last, or heard of: for those who cannot wait */
  last: OpenChallenges = answersOf([])

  constructor(options: ChallengesOptions) {
    this.#options = options
    this.#stop = options.news.on('challenges', () => {
      this.read().catch((error) => options.log.warn({ err: error }, 'could not read which challenges are open'))
    })
  }

  /** The challenges that were open after the call. @throws when the database does not answer */
  read(): Promise<OpenChallenges> {
    if (!this.#reading) {
      this.#reading = this.#select().finally(() => {
        this.#reading = undefined
      })
      return this.#reading
    }
    const again = () => {
      this.#next = undefined
      return this.read()
    }
    this.#next ??= this.#reading.then(again, again)
    return this.#next
  }

  close(): void {
    this.#stop()
  }

  async #select(): Promise<OpenChallenges> {
    const rows = await this.#options.sql<Row[]>`
      select kind, name, token, value from acme_challenges where expires_at > now() order by id desc limit ${OPEN_MOST}`
    this.last = answersOf(rows)
    return this.last
  }
}

/** Opens challenges. @returns what closes them again */
export async function openChallenges(sql: Sql, challenges: readonly Challenge[]): Promise<() => Promise<void>> {
  const rows = challenges.map((one) => ({ ...one, token: one.kind === 'dns-01' ? '' : one.token }))
  await sql`delete from acme_challenges where expires_at < now()`
  const made = await sql<{ id: number }[]>`
    insert into acme_challenges ${sql(rows, 'kind', 'name', 'token', 'value')} returning id`
  const ids = made.map(({ id }) => id)
  return async () => {
    await sql`delete from acme_challenges where id in ${sql(ids)}`
  }
}

type Row = { kind: string; name: string; token: string; value: string }

function answersOf(rows: readonly Row[]): OpenChallenges {
  const of = (kind: string, name: string) => rows.filter((row) => row.kind === kind && row.name === name)
  return {
    txt: (name) => of('dns-01', name).map(({ value }) => value),
    http: (host, token) => of('http-01', host).find((row) => row.token === token)?.value,
    alpn: (host) => of('tls-alpn-01', host)[0]?.value,
  }
}
