/**
 * What the gateway tells by itself (`GET /events`, server-sent): the account's machines as they are, what they have
 * cost, and that something else is worth another look. The stream goes
 *
 *   connecting   nothing has come yet
 *   live         the last sign of life is younger than SILENT_MS
 *   stale        it was cut, or is silent, or the gateway itself hears nothing: what is shown was so `sinceMs`
 *
 * and back to live by itself. A cut one is taken up where it ended: the gateway is told the last event seen.
 */
import { batch, computed, type ReadonlySignal, type Signal, signal } from '@preact/signals'
import { exec, leave } from './exec.ts'

/** A machine as `ls --json` shows it. */
export type Machine = {
  id: number
  vm_name: string
  status: string
  /** the status in a word or two, also of what is on its way: `falling asleep` */
  status_text: string
  ssh_dest: string
  ssh_port: number
  https_url: string
  image: string
  tags: string[]
  comment: string
  allocated_cpus: number
  memory_capacity_bytes: number
  disk_capacity_bytes: number
  created_at: string
  awake_because: string | null
  /** the start's stage, while it starts */
  stage: string | null
  never_sleeps: boolean
  idle_since: string | null
  asleep_since: string | null
  asleep_because: string | null
  ip: string | null
  host: string
  reason?: string
}

export type Live = { state: 'connecting' | 'live' | 'stale'; sinceMs: number | undefined }

/**
 * What may be news beside machines; servers, accounts and rates for operators alone. `shares`: what others share; `notices`:
 * what the account is told, and that it was read; `day`: another one has begun, in UTC, and plans and rates with it.
 */
export type Topic = 'machines' | 'keys' | 'shares' | 'audit' | 'notices' | 'day' | 'hosts' | 'accounts' | 'rates'

/** The gateway says something each 15 s. */
const SILENT_MS = 35_000
/** Then the stream may say what is wrong. */
const SNAPSHOT_MS = 3_000
/** A cut that is mended so soon is none that anybody should see. */
const UNSEEN_MS = 2_000
const AGAIN_FIRST_MS = 500
const AGAIN_LAST_MS = 15_000

export const live = signal<Live>({ state: 'connecting', sinceMs: undefined })
/** all machines' numbers, by name; undefined until they are known */
export const machineIds = signal<readonly number[] | undefined>(undefined)
/** what each has cost this month, in millionths of a dollar */
export const costs = signal<ReadonlyMap<number, number>>(new Map())

const machines = new Map<number, Signal<Machine>>()
const news = new Map<Topic, Signal<number>>()

/** A machine by its number: a signal of its own, so that a change draws one row anew. */
export function machineOf(id: number): ReadonlySignal<Machine> | undefined {
  return machines.get(id)
}

/** With another name there is another list of numbers. */
const idsByName = computed(() => new Map((machineIds.value ?? []).map((id) => [machines.get(id)?.peek().vm_name, id])))

/** A machine by its name: of changes, those of this machine and of names are followed. */
export function machineCalled(name: string): Machine | undefined {
  const id = idsByName.value.get(name)
  return id === undefined ? undefined : machines.get(id)?.value
}

/** All machines' names, in order. */
export const machineNames = computed(() =>
  (machineIds.value ?? []).flatMap((id) => machines.get(id)?.value.vm_name ?? []),
)

/** Counts what happened to a topic. */
export function newsOf(topic: Topic): ReadonlySignal<number> {
  let count = news.get(topic)
  if (!count) {
    count = signal(0)
    news.set(topic, count)
  }
  return count
}

export const costOfAll = computed(() => [...costs.value.values()].reduce((sum, one) => sum + one, 0))

let source: EventSource | undefined
let lastId = ''
let heardAtMs = Date.now()
let attempts = 0
let hasOpened = false
let timer: ReturnType<typeof setTimeout> | undefined
let cutTimer: ReturnType<typeof setTimeout> | undefined

/** Begins to listen; once. What the page had its browser ask for along with its script is there first. */
export function startLive(): void {
  void takeSnapshot().finally(open)
  setInterval(() => {
    if (source && Date.now() - heardAtMs > SILENT_MS) {
      becomeStale(heardAtMs)
      open()
    }
  }, 5_000)
  // A laptop that was closed finds out at once.
  addEventListener('online', open)
  document.addEventListener('visibilitychange', () => {
    if (document.visibilityState === 'visible' && Date.now() - heardAtMs > SILENT_MS / 2) open()
  })
  addEventListener('pagehide', () => source?.close())
  addEventListener('pageshow', (event) => {
    if (event.persisted) open()
  })
}

async function takeSnapshot(): Promise<void> {
  try {
    const answer = await fetch('/events?once', { signal: AbortSignal.timeout(SNAPSHOT_MS) })
    if (!answer.ok) return
    const said = (await answer.json()) as { id: string; set: Record<string, Machine>; costs?: Record<string, number> }
    // Somebody was quicker: `online`, or a page that was seen again.
    if (source) return
    lastId = said.id
    batch(() => {
      takeMachines({ full: true, set: said.set, gone: [] })
      if (said.costs) takeCosts(said.costs)
      becomeLive()
    })
  } catch {
    // The stream brings the same, and says what is wrong.
  }
}

function open(): void {
  clearTimeout(timer)
  source?.close()
  heardAtMs = Math.max(heardAtMs, live.value.state === 'connecting' ? Date.now() : 0)
  const opened = new EventSource(lastId === '' ? '/events' : `/events?${new URLSearchParams({ after: lastId })}`)
  source = opened
  const on = (name: string, hear: (said: never) => void) =>
    opened.addEventListener(name, (event) => {
      if (source !== opened) return
      heardAtMs = Date.now()
      if (event.lastEventId !== '') lastId = event.lastEventId
      hear(JSON.parse(event.data) as never)
    })
  opened.addEventListener('open', () => {
    // Of machines it is told what it missed; anything may have happened to the rest.
    if (hasOpened) batch(() => [...news.keys()].filter((topic) => topic !== 'machines').forEach(bump))
    hasOpened = true
  })
  on('machines', (said: { full?: true; set: Record<string, Machine>; gone: number[] }) => {
    batch(() => {
      takeMachines(said)
      becomeLive()
    })
  })
  on('costs', takeCosts)
  on('news', (said: { what: Topic }) => bump(said.what))
  on('alive', () => becomeLive())
  on('stale', (said: { since: string }) => becomeStale(Date.parse(said.since)))
  on('end', () => {
    opened.close()
    leave()
  })
  opened.addEventListener('error', () => {
    if (source !== opened) return
    cutTimer ??= setTimeout(() => becomeStale(heardAtMs), UNSEEN_MS)
    // Where it may, the browser tries again by itself; an answer that is no stream ends that.
    if (opened.readyState === EventSource.CLOSED) void later()
  })
}

/** Asks first whether this browser is still signed in, which an EventSource cannot tell. */
async function later(): Promise<void> {
  source = undefined
  clearTimeout(timer)
  const waitMs = Math.min(AGAIN_LAST_MS, AGAIN_FIRST_MS * 2 ** attempts++)
  timer = setTimeout(open, waitMs + Math.random() * waitMs)
  await exec(['whoami']).catch(() => {})
}

function becomeLive(): void {
  attempts = 0
  clearTimeout(cutTimer)
  cutTimer = undefined
  if (live.value.state !== 'live') live.value = { state: 'live', sinceMs: undefined }
}

function becomeStale(sinceMs: number): void {
  clearTimeout(cutTimer)
  cutTimer = undefined
  if (live.value.state !== 'stale') live.value = { state: 'stale', sinceMs }
}

function takeMachines({ full, set, gone }: { full?: true; set: Record<string, Machine>; gone: number[] }): void {
  let isOther = machineIds.value === undefined
  const remove = (id: number) => {
    isOther = machines.delete(id) || isOther
  }
  if (full) for (const id of machines.keys()) if (!(id in set)) remove(id)
  for (const id of gone) remove(id)
  for (const [key, machine] of Object.entries(set)) {
    const id = Number(key)
    const known = machines.get(id)
    if (!known || known.value.vm_name !== machine.vm_name) isOther = true
    if (known) known.value = machine
    else machines.set(id, signal(machine))
  }
  bump('machines')
  if (!isOther) return
  const named = [...machines].map(([id, machine]) => ({ id, name: machine.peek().vm_name }))
  machineIds.value = named.sort((a, b) => (a.name < b.name ? -1 : 1)).map(({ id }) => id)
}

function takeCosts(said: Record<string, number>): void {
  costs.value = new Map(Object.entries(said).map(([id, micros]) => [Number(id), micros]))
}

function bump(topic: Topic): void {
  const count = newsOf(topic) as Signal<number>
  count.value = count.peek() + 1
}
