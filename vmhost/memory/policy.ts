import type { HostMemory } from './host-memory.ts'

/**
 * Who gives memory when a server is short of it, and who gets it back: decisions alone, of figures alone.
 *
 *     ample --below `enough`--> enough --below `low`, or programs wait for memory--> short
 *     short --above `enough`--> enough --above `ample`--> ample
 *     short --below `scarce`, or all programs wait--> scarce --below `least`--> desperate, and back as each holds no more
 *
 *     short      balloons take from guests: those idle longest first, then those that work, never what a guest needs
 *     scarce     and where balloons do not do, those idle longest are put to sleep
 *     desperate  and where nobody is idle, those that work
 *     ample      what was taken is given back, a part at a time
 *
 * A guest that has little left gets all of it back at once, however short the server is: a balloon that is let out
 * costs the server nothing until the guest writes to what it got.
 */

const MiB = 2 ** 20

export type Level = 'ample' | 'enough' | 'short' | 'scarce' | 'desperate'
const levels: readonly Level[] = ['ample', 'enough', 'short', 'scarce', 'desperate']

export function isAtLeast(level: Level, least: Level): boolean {
  return levels.indexOf(level) >= levels.indexOf(least)
}

/** Available memory, in bytes, at which a level begins. */
export type Marks = {
  readonly ample: number
  readonly enough: number
  readonly low: number
  readonly scarce: number
  readonly least: number
}

/**
 * A large server fills no faster for being large, only its hypervisors are more: `least` is what one machine that starts
 * takes before the next look.
 */
export function marksOf(totalBytes: number): Marks {
  const least = Math.min(512 * MiB, Math.max(96 * MiB, totalBytes / 64))
  return { least, scarce: least * 2, low: least * 3, enough: least * 4.5, ample: least * 6 }
}

/** Programs wait for memory, which is said only of a server that has little: the limit of one group may be what they wait at. */
const stalledSome = 0.1
const stalledFull = 0.1

/** @param was the level so far: what has become short stays so until there is enough again */
export function levelOf({ totalBytes, availableBytes, stall }: HostMemory, was: Level): Level {
  const marks = marksOf(totalBytes)
  if (availableBytes < marks.least) return 'desperate'
  const isThrashing = stall !== undefined && stall.full >= stalledFull && availableBytes < marks.enough
  if (availableBytes < marks.scarce || isThrashing) return 'scarce'
  const isStalled = stall !== undefined && stall.some >= stalledSome && availableBytes < marks.ample
  const wasShort = isAtLeast(was, 'short') && availableBytes < marks.enough
  if (availableBytes < marks.low || isStalled || wasShort) return 'short'
  return availableBytes < marks.ample ? 'enough' : 'ample'
}

/** A machine whose guest is ready, as far as memory goes. */
export type Tenant = {
  readonly id: number
  readonly memoryBytes: number
  /** what its hypervisor holds of the server's memory: less than the guest has where it never wrote, or reports free pages */
  readonly heldBytes: number
  /** what its guest has given back */
  readonly balloonBytes: number
  /** what it was asked to give back, and the most that it has given since */
  readonly askedBytes: number
  readonly mostBytes: number
  readonly askedAgoMs: number
  /** as its guest says; undefined: it has not said anything lately */
  readonly availableBytes: number | undefined
  /** undefined: never */
  readonly relievedAgoMs: number | undefined
  /** null: it works */
  readonly idleSince: Date | null
}

export type Ask = {
  readonly id: number
  /** what its guest shall have given back */
  readonly bytes: number
  /** it has little left, and nothing is taken from it for a while */
  readonly relieves: boolean
}

export type Plan = {
  readonly asks: readonly Ask[]
  /** what the server needs and no balloon can give */
  readonly missingBytes: number
  /** what guests are about to give */
  readonly pendingBytes: number
}

/** Below this a guest drops what it will read again at once, and soon begins to end programs. */
export function floorBytes({ memoryBytes }: Pick<Tenant, 'memoryBytes'>): number {
  return 16 * MiB + memoryBytes / 32
}

/** What is left available to a guest, beside all that it uses. */
export function keptBytes({ memoryBytes, idleSince }: Pick<Tenant, 'memoryBytes' | 'idleSince'>): number {
  return idleSince ? 32 * MiB + memoryBytes / 16 : 64 * MiB + memoryBytes / 4
}

/** Less is not worth a word to the guest. */
const grainBytes = 16 * MiB
/** A guest takes about a second for a GiB, and under emulation a few; what it has not given by then it does not have. */
export const inflateLimitMs = 20_000
/** Whatever it says: its kernel may have no balloon, or be another's by now. It is asked again after so long. */
export const spentMs = 300_000
/** Nothing is taken again for so long from a guest that had to have it back. */
export const restMs = 60_000
/** There was memory in plenty for so long before any is given back. */
const ampleLeastMs = 30_000
/** By its own hand, when it was about to end a program: `deflate-on-oom`. */
const deflatedBytes = 4 * MiB

export type Need = {
  readonly host: HostMemory
  readonly level: Level
  /** how long there has been memory in plenty */
  readonly ampleForMs: number
  /** for machines that wait to be woken */
  readonly wantedBytes: number
}

/** What each guest shall have given back from now on; guests that are not in it: what they were asked before. */
export function plan(need: Need, tenants: readonly Tenant[]): Plan {
  const relieved = tenants.map((tenant) => relief(tenant, need.level)).filter((ask) => ask !== undefined)
  const others = tenants.filter(({ id }) => !relieved.some((ask) => ask.id === id))
  const pendingBytes = others.reduce((sum, tenant) => sum + pending(tenant), 0)
  const neededBytes = shortBytes(need) - pendingBytes
  if (neededBytes > 0) {
    const taken = take(others, neededBytes)
    const takenBytes = taken.reduce((sum, { takes }) => sum + takes, 0)
    return {
      asks: [...relieved, ...taken.map(({ ask }) => ask)],
      missingBytes: Math.max(0, neededBytes - takenBytes),
      pendingBytes: pendingBytes + takenBytes,
    }
  }
  const given = need.level === 'ample' && need.ampleForMs >= ampleLeastMs ? giveBack(need, others) : []
  return { asks: [...relieved, ...given], missingBytes: 0, pendingBytes }
}

/** What the server would have to get to be at rest, with all that waits for memory. */
function shortBytes({ host, level, wantedBytes }: Need): number {
  const { enough, low } = marksOf(host.totalBytes)
  const forItself = isAtLeast(level, 'short') ? enough - host.availableBytes : 0
  const forOthers = wantedBytes > 0 ? wantedBytes + low - host.availableBytes : 0
  return Math.max(0, forItself, forOthers)
}

/** Whether a machine that takes so much can come: nobody has to sleep for it afterwards. */
export function hasRoom(host: HostMemory, bytes: number): boolean {
  return host.availableBytes - bytes >= marksOf(host.totalBytes).scarce
}

/** What the server gets of what a guest was asked for and has not given yet. */
function pending(tenant: Tenant): number {
  const { askedAgoMs, askedBytes, balloonBytes } = tenant
  return askedAgoMs < inflateLimitMs ? Math.max(0, askedBytes - balloonBytes - emptyBytes(tenant)) : 0
}

function isInflating({ askedAgoMs, askedBytes, balloonBytes }: Tenant): boolean {
  return askedAgoMs < inflateLimitMs && askedBytes > balloonBytes
}

/** It has had its time, and has not given what it was asked for. */
function isSpent({ askedAgoMs, askedBytes, balloonBytes }: Tenant): boolean {
  return askedAgoMs >= inflateLimitMs && askedAgoMs < spentMs && askedBytes - balloonBytes >= grainBytes
}

/** What a guest gives first, and the server has already. */
function emptyBytes({ memoryBytes, balloonBytes, heldBytes }: Tenant): number {
  return Math.max(0, memoryBytes - balloonBytes - heldBytes)
}

function relief(tenant: Tenant, level: Level): Ask | undefined {
  const { id, balloonBytes, askedBytes, mostBytes, availableBytes, idleSince } = tenant
  if (Math.max(balloonBytes, askedBytes) === 0) return undefined
  const isSilent = availableBytes === undefined
  if (isSilent || availableBytes < floorBytes(tenant) || balloonBytes < mostBytes - deflatedBytes)
    return { id, bytes: 0, relieves: true }
  // It was idle and is not any more.
  const missing = keptBytes(tenant) - availableBytes
  if (idleSince || isAtLeast(level, 'scarce') || missing < grainBytes || balloonBytes === 0) return undefined
  return { id, bytes: wholeMiB(Math.max(0, balloonBytes - missing)), relieves: true }
}

function take(tenants: readonly Tenant[], neededBytes: number): { ask: Ask; takes: number }[] {
  const givers = tenants
    .filter((tenant) => !isInflating(tenant) && !isSpent(tenant) && (tenant.relievedAgoMs ?? restMs) >= restMs)
    .map((tenant) => ({ tenant, gives: (tenant.availableBytes ?? 0) - keptBytes(tenant) - emptyBytes(tenant) }))
    .filter(({ gives }) => gives >= grainBytes)
    .sort((a, b) => idleFirst(a.tenant, b.tenant) || b.gives - a.gives)
  const taken: { ask: Ask; takes: number }[] = []
  // Up to whole ones, or the next would have to give what the rounding left.
  let left = Math.max(grainBytes, -wholeMiB(-neededBytes))
  for (const { tenant, gives } of givers) {
    if (left <= 0) break
    const takes = wholeMiB(Math.min(gives, left))
    const bytes = wholeMiB(tenant.balloonBytes) + wholeMiB(emptyBytes(tenant)) + takes
    taken.push({ ask: { id: tenant.id, bytes, relieves: false }, takes })
    left -= takes
  }
  return taken
}

/** Half of what there is beyond enough, so that the next look sees what became of it; those that work first. */
function giveBack({ host }: Need, tenants: readonly Tenant[]): Ask[] {
  let left = (host.availableBytes - marksOf(host.totalBytes).enough) / 2
  const asks: Ask[] = []
  for (const tenant of tenants.toSorted((a, b) => idleFirst(b, a))) {
    const has = Math.max(tenant.balloonBytes, tenant.askedBytes)
    if (has === 0 || left < grainBytes) continue
    const gives = Math.min(has, wholeMiB(left))
    asks.push({ id: tenant.id, bytes: wholeMiB(has - gives), relieves: false })
    left -= gives
  }
  return asks
}

function idleFirst(a: Pick<Tenant, 'idleSince'>, b: Pick<Tenant, 'idleSince'>): number {
  const since = ({ idleSince }: Pick<Tenant, 'idleSince'>) => idleSince?.getTime() ?? Number.POSITIVE_INFINITY
  const [ofA, ofB] = [since(a), since(b)]
  return ofA === ofB ? 0 : ofA - ofB
}

function wholeMiB(bytes: number): number {
  return Math.floor(bytes / MiB) * MiB
}
