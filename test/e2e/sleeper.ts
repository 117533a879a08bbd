/**
 * Cycles of sleep and wake: what a machine has written, and what it only counts in its memory, is compared after each.
 */
import { setTimeout as sleep } from 'node:timers/promises'

export type Slept = {
  observed_state: string
  observed_reason: string | null
  observed_asleep_because: string | null
  observed_saved_bytes: number | null
  ready: boolean
}

/** A machine, wherever it is: it is told what is wanted of it, is looked at, and runs commands over SSH. */
export type Sleeping = {
  readonly id: number
  want(state: 'asleep' | 'running' | 'stopped'): Promise<void>
  seen(): Promise<Slept>
  ssh(command: string): Promise<{ status: number | null; stdout: string; stderr: string }>
}

/** What one cycle took, from the wish to what it is. */
export type Cycle = { readonly asleepMs: number; readonly awakeMs: number; readonly savedBytes: number }

/** A machine that is put to sleep and woken as a gateway does it. */
export class Sleeper {
  readonly #machine: Sleeping
  readonly #limitMs: number
  #written = 0

  /** @param limitMs for each step */
  constructor(machine: Sleeping, limitMs = 120_000) {
    this.#machine = machine
    this.#limitMs = limitMs
  }

  get id(): number {
    return this.#machine.id
  }

  seen(): Promise<Slept> {
    return this.#machine.seen()
  }

  want(state: 'asleep' | 'running' | 'stopped'): Promise<void> {
    return this.#machine.want(state)
  }

  /** @throws with what it is instead */
  async until(state: 'asleep' | 'running' | 'stopped'): Promise<void> {
    for (const deadline = Date.now() + this.#limitMs; ; await sleep(50)) {
      const seen = await this.seen()
      if (seen.observed_state === state && seen.ready === (state === 'running')) return
      // It leaves that by another start only.
      if (seen.observed_state === 'failed') throw new Error(`not ${state}: ${seen.observed_reason}`)
      if (Date.now() > deadline) throw new Error(`not ${state} within ${this.#limitMs} ms: ${JSON.stringify(seen)}`)
    }
  }

  async inside(command: string): Promise<string> {
    const done = await this.#machine.ssh(command)
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
    for (const deadline = Date.now() + this.#limitMs; ; ) {
      const askedAt = Date.now() / 1000
      const { status, stdout, stderr } = await this.#machine.ssh(look)
      // Emulated beside others, a guest that has just woken may let the patience for one connection run out.
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
  async cycle(): Promise<Cycle> {
    const counted = await this.write()
    const wantedAt = Date.now()
    await this.want('asleep')
    await this.until('asleep')
    const asleepMs = Date.now() - wantedAt
    const { observed_reason: reason, observed_saved_bytes: bytes } = await this.seen()
    if (reason !== null) throw new Error(`asleep, it says: ${reason}`)
    const knockedAt = Date.now()
    await this.want('running')
    await this.until('running')
    const awakeMs = Date.now() - knockedAt
    await this.compare(counted)
    return { asleepMs, awakeMs, savedBytes: bytes ?? 0 }
  }
}
