/**
 * Rounds of kill -9 while a machine talks, sleeps and wakes. After each, what the machine has counted, what the far side
 * has counted and what the ledger has are the same, to the byte; at the end, so is the time that it ran, to the second.
 */
import { existsSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { killOne, random, type Victim } from './crash.rounds.ts'
import { isOf, Lives, switchedOff } from './ledger.lives.ts'
import { AccountingMachine, type Counted, type OwnAccount, PAGE_BYTES } from './ledger.machine.ts'
import { type Product, SERVER_ADDRESS, startProduct } from './product.ts'
import { findSleeper } from './sleep.cycles.ts'
import type { Sleeper } from './sleeper.ts'

const DOMAIN = 'berth.example'
const LIMIT_MS = 240_000
const LOOK_MS = 500
/** What the machine and the ledger may differ by in when it began or ended to run. */
const MOST_OFF_MS = 1_000
const DOWNLOAD_BYTES = 200_000

type Ledger = { [name in 'direct_out' | 'direct_in' | 'gateway_out' | 'gateway_in']: Counted }

export class LedgerRounds implements AsyncDisposable {
  readonly #product: Product
  readonly #machine: AccountingMachine
  readonly #sleeper: Sleeper
  readonly #lives: Lives
  readonly #readyAt: number
  #rounds = 0
  /** What was counted before the machine had its own nftables: its card gets a few frames of ARP that are no IP. */
  #before: { classes: Ledger; strange: Counted } | undefined

  private constructor(parts: { product: Product; machine: AccountingMachine; sleeper: Sleeper; readyAt: number }) {
    this.#product = parts.product
    this.#machine = parts.machine
    this.#sleeper = parts.sleeper
    this.#readyAt = parts.readyAt
    const { product, machine } = parts
    // Whoever asks for the program's version is no hypervisor.
    this.#lives = new Lives(() => product.processes().hypervisors.filter((pid) => isOf(pid, machine.id)))
  }

  static async start(): Promise<LedgerRounds> {
    const product = await startProduct({ env: { BERTH_DOMAIN: DOMAIN, BERTH_METER: '1s' } })
    try {
      const machine = await AccountingMachine.make(product)
      const opened = await product.lobby('share set-public demo')
      if (opened.status !== 0) throw new Error(opened.stderr)
      const [row] = await product.sql()<{ at: Date }[]>`
        select observed_ready_at as at from machines where id = ${machine.id}`
      const readyAt = row?.at.getTime() ?? 0
      return new LedgerRounds({ product, machine, sleeper: await findSleeper(product, 'demo'), readyAt })
    } catch (error) {
      await product[Symbol.asyncDispose]()
      throw error
    }
  }

  /** @returns what was done @throws with what does not agree */
  async round(seed: number): Promise<string> {
    const pick = random(seed)
    const story: string[] = []
    const number = this.#rounds++
    await this.#machine.talk(number, 5)
    const over = new AbortController()
    const visits = this.#visit(over.signal)
    try {
      const victims: Victim[] = ['vmhost', 'gateway', 'postgres']
      while (victims.length > 0) {
        await sleep(pick() * 1_500)
        const [victim = 'vmhost'] = victims.splice(Math.floor(pick() * victims.length), 1)
        await this.#kill(victim, pick)
        story.push(victim)
      }
      await until('the machine has talked', () => this.#machine.hasTalked(number))
    } finally {
      over.abort()
      await visits
    }
    // Now that nobody talks to it who would wake it.
    if (number % 2 === 1) {
      await this.#sleepAndWake(async () => {
        await sleep(pick() * 3_000)
        await this.#kill('vmhost', pick)
        story.push('vmhost, falling asleep')
      })
    }
    await until('it is reached again', async () => (await this.#download()) === DOWNLOAD_BYTES)
    await until('its page is reached again', async () => (await this.#page()) === PAGE_BYTES)
    await this.agree()
    return story.join(', ')
  }

  /** Ends Berth, has the machine talk and switch itself off meanwhile, and starts Berth again. */
  async switchOffUnseen(): Promise<void> {
    await this.#machine.talkAndSwitchOff(this.#rounds++)
    await this.#product.stop()
    const life = this.#lives.last
    if (!life) throw new Error('it never ran')
    await switchedOff(life.pid, LIMIT_MS)
    life.endedAt ??= Date.now()
    await this.#product.start()
    await until('that is known', async () => (await this.#sleeper.seen()).observed_state === 'stopped')
    await this.agree()
  }

  /** Ends its last run, and waits until each run is in the ledger. @returns as `time` @throws what `time` does */
  async switchOff(): Promise<number[]> {
    await retried(() => this.#sleeper.want('stopped'))
    await retried(() => this.#sleeper.until('stopped'))
    this.#lives.look()
    let off: number[] = []
    await until('its last run is in the ledger', async () => {
      off = await this.time()
      return true
    })
    return off
  }

  /** Waits until all accounts are the same. @throws with what is not */
  async agree(): Promise<void> {
    let differences: string[] = []
    await until(
      'all accounts agree',
      async () => {
        differences = await this.#differences()
        return differences.length === 0
      },
      () => differences.join('; '),
    )
  }

  /** @returns how much longer or shorter each run of the machine is in the ledger, in milliseconds @throws where it is too much */
  async time(): Promise<number[]> {
    const spans = await this.#product.sql()<{ from: Date; to: Date }[]>`
      select lower(run) as from, upper(run) as to from (
        select unnest(range_agg(during)) as run from machine_spans where machine_id = ${this.#machine.id} and state = 'running'
      ) as runs order by 1`
    const lives = this.#lives.all
    const said = JSON.stringify({ spans, lives, readyAt: this.#readyAt })
    if (spans.length !== lives.length) throw new Error(`${spans.length} runs in the ledger of ${lives.length}: ${said}`)
    return lives.map(({ startedAt, readyAt, savedAt, endedAt = 0 }, index) => {
      const [from, to] = [spans[index]?.from.getTime() ?? 0, spans[index]?.to.getTime() ?? 0]
      // It is `creating` until it is ready for the first time.
      const begins = index === 0 ? from - this.#readyAt : outside(from, startedAt, readyAt ?? startedAt)
      const ends = outside(to, savedAt ?? endedAt, endedAt)
      if (Math.abs(begins) > MOST_OFF_MS || Math.abs(ends) > MOST_OFF_MS)
        throw new Error(`run ${index} begins ${begins} ms and ends ${ends} ms off: ${said}`)
      return Math.round(ends - begins)
    })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#lives[Symbol.dispose]()
    await this.#machine[Symbol.asyncDispose]()
    await this.#product[Symbol.asyncDispose]()
  }

  /** Waits for the victim to be there: another kill may have been so shortly before. */
  async #kill(victim: Victim, pick: () => number): Promise<void> {
    await until(`${victim} is there to be killed`, () => killOne(this.#product, victim, pick))
  }

  async #sleepAndWake(meanwhile: () => Promise<void>): Promise<void> {
    await retried(() => this.#sleeper.want('asleep'))
    await meanwhile()
    await retried(() => this.#sleeper.until('asleep'))
    this.#lives.look()
    const life = this.#lives.last
    const saved = join(this.#product.storePath(`machines/${this.#machine.id}`), 'memory', 'saved.json')
    if (life && existsSync(saved)) life.savedAt = statSync(saved).mtimeMs
    await retried(() => this.#sleeper.want('running'))
    await retried(() => this.#sleeper.until('running'))
    this.#lives.look()
    if (this.#lives.last) this.#lives.last.readyAt = Date.now()
  }

  /** Comes by SSH and HTTPS again and again, whether it is let in or cut off. */
  async #visit(signal: AbortSignal): Promise<void> {
    const ways = [() => this.#download(), () => this.#upload(), () => this.#page()]
    for (let visit = 0; !signal.aborted; visit++) {
      await ways[visit % ways.length]?.().catch(() => {})
      await sleep(100)
    }
  }

  async #download(): Promise<number> {
    return (await this.#machine.inside(`head -c ${DOWNLOAD_BYTES} /dev/zero | tr '\\0' x`)).length
  }

  async #upload(): Promise<void> {
    await this.#machine.inside('cat > /dev/null', Buffer.alloc(150_000))
  }

  async #page(): Promise<number> {
    const host = `demo.${DOMAIN}:8443`
    const { stdout } = await this.#product.outside('curl', [
      ...['-sS', '-m', '20', '--cacert', join(this.#product.dataDirectory, 'ca.pem')],
      ...['--resolve', `${host}:${SERVER_ADDRESS}`, `https://${host}/`],
    ])
    return stdout.length
  }

  /** A counter that began at zero has counted what it reads last: no differences, so no way to go wrong in them. */
  async #ledger(): Promise<Ledger> {
    const names = ['direct_out', 'direct_in', 'gateway_out', 'gateway_in'] as const
    const [row = {}] = await this.#product.sql().unsafe<Record<string, number>[]>(`
      select ${names.map((name) => `coalesce(sum(${name}_bytes), 0)::bigint as ${name}_bytes, coalesce(sum(${name}_packets), 0)::bigint as ${name}_packets`)}
      from (select ${names.map((name) => `max(${name}_bytes) as ${name}_bytes, max(${name}_packets) as ${name}_packets`)}
        from transfer_readings where machine_id = ${this.#machine.id} group by series) as lives`)
    const of = (name: string): Counted => ({ bytes: row[`${name}_bytes`] ?? 0, packets: row[`${name}_packets`] ?? 0 })
    return Object.fromEntries(names.map((name) => [name, of(name)])) as Ledger
  }

  /** @returns one sentence each; none: what was sent a moment ago is in all accounts */
  async #differences(): Promise<string[]> {
    const own = this.#machine.account()
    const [ledger, far, billed] = await Promise.all([this.#ledger(), this.#machine.farAccount(), this.#billed()])
    const wrong: string[] = []
    const same = (what: string, one: Counted, other: Counted) => {
      if (one.bytes === other.bytes && one.packets === other.packets) return
      wrong.push(`${what}: ${one.bytes} B in ${one.packets}, and ${other.bytes} B in ${other.packets}`)
    }
    same('out, card and ledger', own.out, sum(ledger.direct_out, ledger.gateway_out, own.out_metadata))
    same('out, machine and far side', own.out_far, far.from)
    same('in, machine and far side', own.in_far, far.to)
    const billedOut = { direct_out: billed.direct, gateway_out: billed.gateway }
    for (const name of ['direct_out', 'gateway_out'] as const)
      if (billedOut[name] !== ledger[name].bytes)
        wrong.push(`${name}: ${billedOut[name]} B of ${ledger[name].bytes} billed`)
    const classes = classesOf(own)
    const earlier = mapped(ledger, (name) => less(ledger[name], classes[name]))
    const known = sum(ledger.direct_in, ledger.gateway_in, own.in_metadata, own.in_strange)
    if (wrong.length === 0) this.#before ??= { classes: earlier, strange: less(own.in, known) }
    if (!this.#before) return wrong
    for (const name of names(ledger)) same(name, earlier[name], this.#before.classes[name])
    same('in, card and ledger', own.in, sum(known, this.#before.strange))
    return wrong
  }

  /** What the sums say that bills are made from. */
  async #billed(): Promise<{ direct: number; gateway: number }> {
    const [row] = await this.#product.sql()<{ direct: number; gateway: number }[]>`
      select coalesce(sum(direct), 0)::bigint as direct, coalesce(sum(gateway), 0)::bigint as gateway
      from usage_days where machine_id = ${this.#machine.id}`
    return row ?? { direct: 0, gateway: 0 }
  }
}

/** ARP and what else is no IP counts on the way out as any frame that a machine sends, and not on the way in. */
function classesOf(own: OwnAccount): Ledger {
  return {
    direct_out: sum(own.out_far, own.out_rest),
    direct_in: sum(own.in_far, own.in_rest),
    gateway_out: own.out_host,
    gateway_in: own.in_host,
  }
}

const names = (ledger: Ledger) => Object.keys(ledger) as (keyof Ledger)[]

function mapped(ledger: Ledger, of: (name: keyof Ledger) => Counted): Ledger {
  return Object.fromEntries(names(ledger).map((name) => [name, of(name)])) as Ledger
}

function sum(...all: Counted[]): Counted {
  return all.reduce((a, b) => ({ bytes: a.bytes + b.bytes, packets: a.packets + b.packets }), { bytes: 0, packets: 0 })
}

function less(a: Counted, b: Counted): Counted {
  return { bytes: a.bytes - b.bytes, packets: a.packets - b.packets }
}

/** @returns by how much `at` is before the first or after the second */
function outside(at: number, first: number, last: number): number {
  return Math.min(0, at - first) + Math.max(0, at - last)
}

/** Whoever was killed is not there to answer for a while. */
async function retried<T>(work: () => Promise<T>): Promise<T> {
  for (const deadline = Date.now() + LIMIT_MS; ; await sleep(LOOK_MS)) {
    try {
      return await work()
    } catch (error) {
      if (Date.now() > deadline) throw error
    }
  }
}

/** @throws when it is not so within the limit */
async function until(what: string, holds: () => boolean | Promise<boolean>, why = () => ''): Promise<void> {
  for (const deadline = Date.now() + LIMIT_MS; ; await sleep(LOOK_MS)) {
    let failed = ''
    try {
      if (await holds()) return
    } catch (error) {
      failed = (error as Error).message
    }
    if (Date.now() > deadline) throw new Error(`${what}, was to be within ${LIMIT_MS} ms: ${failed || why()}`)
  }
}
