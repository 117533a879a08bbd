/**
 * Cycles of sleep and wake: what a machine has written, and what it only counts in its memory, is compared after each.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { type Product, SERVER_ADDRESS } from './product.ts'

const LIMIT_MS = 120_000

export type Slept = {
  observed_state: string
  observed_reason: string | null
  observed_asleep_because: string | null
  observed_saved_bytes: number | null
  ready: boolean
}

/** A machine of a product that is put to sleep and woken as a gateway does it. */
export class Sleeper {
  readonly #product: Product
  readonly #name: string
  readonly #id: number
  #written = 0

  private constructor(product: Product, name: string, id: number) {
    this.#product = product
    this.#name = name
    this.#id = id
  }

  static async find(product: Product, name: string): Promise<Sleeper> {
    const [row] = await product.sql()<{ id: number }[]>`select id from machines where name = ${name}`
    if (!row) throw new Error(`no machine called ${name}`)
    return new Sleeper(product, name, row.id)
  }

  get id(): number {
    return this.#id
  }

  async seen(): Promise<Slept> {
    const [row] = await this.#product.sql()<Slept[]>`
      select observed_state, observed_reason, observed_asleep_because, observed_saved_bytes,
        observed_ready_at is not null as ready from machines where id = ${this.#id}`
    if (!row) throw new Error('no machine')
    return row
  }

  async want(state: 'asleep' | 'running'): Promise<void> {
    await this.#product.sql('berth_gateway')`update machines set desired_state = ${state} where id = ${this.#id}`
  }

  /** @throws with what it is instead */
  async until(state: 'asleep' | 'running'): Promise<void> {
    for (const deadline = Date.now() + LIMIT_MS; ; await sleep(50)) {
      const seen = await this.seen()
      if (seen.observed_state === state && seen.ready === (state === 'running')) return
      if (Date.now() > deadline) throw new Error(`not ${state} within ${LIMIT_MS} ms: ${JSON.stringify(seen)}`)
    }
  }

  async inside(command: string): Promise<string> {
    const done = await this.#product.ssh([`${this.#name}@${SERVER_ADDRESS}`, command])
    if (done.status !== 0) throw new Error(`${command}: ${done.status} ${done.stderr}${done.stdout}`)
    return done.stdout.trim()
  }

  /** Has it do what is written down nowhere but in its memory. */
  async startCounting(): Promise<void> {
    // Whoever reads it never finds it empty.
    const count = 'cd /dev/shm; n=0; while :; do n=$((n+1)); echo $n > next; mv next count; sleep 0.5; done'
    await this.inside(`setsid sh -c '${count}' > /dev/null 2>&1 < /dev/null & echo $! > /dev/shm/pid`)
    await this.inside('head -c 5000000 /dev/urandom > /dev/shm/blob; cd /dev/shm && sha256sum blob > sum')
  }

  /** Has it write a file, which is not synced. @returns what it has counted by then */
  async write(): Promise<number> {
    const file = `f${this.#written++ % 8}`
    return Number(await this.inside(`head -c 200000 /dev/urandom > ${file}; sha256sum f? > sums; cat /dev/shm/count`))
  }

  /**
   * Sees to it that every file and all of its memory are what they were, that its counter goes on, and that its clock is
   * right.
   * @param least what it had counted before
   */
  async compare(least = 1): Promise<void> {
    const look = `date +%s; cd; [ ! -e sums ] || sha256sum --quiet -c sums || exit 1
      cd /dev/shm && sha256sum --quiet -c sum && kill -0 $(cat pid) && from=$(cat count) || exit 1
      n=0; until [ "$(cat count)" -gt "$from" ]; do n=$((n+1)); [ $n -lt 200 ] || exit 1; sleep 0.1; done; echo $from`
    for (const deadline = Date.now() + LIMIT_MS; ; ) {
      const askedAt = Date.now() / 1000
      const { status, stdout, stderr } = await this.#product.ssh([`${this.#name}@${SERVER_ADDRESS}`, look])
      // Emulated beside others, a guest that has just woken may let the gateway's patience for one connection run out.
      if (status === 255 && Date.now() < deadline) continue
      if (status !== 0) throw new Error(`not what it was: ${status} ${stdout}${stderr}`)
      const [now = 0, counted = 0] = stdout.trim().split('\n').map(Number)
      if (counted < least) throw new Error(`it counted to ${counted}, and before to ${least}`)
      // The clock is right before anybody can be there to see it.
      if (now >= askedAt - 3 && now <= Date.now() / 1000 + 3) return
      throw new Error(`its clock says ${now}, and it was ${askedAt}`)
    }
  }

  /** One cycle: write, sleep, wake, compare. */
  async cycle(): Promise<void> {
    const counted = await this.write()
    await this.want('asleep')
    await this.until('asleep')
    const { observed_reason: reason } = await this.seen()
    if (reason !== null) throw new Error(`asleep, it says: ${reason}`)
    await this.want('running')
    await this.until('running')
    await this.compare(counted)
  }
}
