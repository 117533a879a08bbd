import { type FaultLab, machineSize } from './lab.ts'

/**
 * What is broken off at every step: asked for as a gateway does it, and then looked at until everything is as it was
 * promised, whatever happened on the way.
 */
export type Operation = (lab: FaultLab) => Promise<UnderTest>

export type UnderTest = {
  /** has it begin */
  ask(): Promise<void>
  /** Resolves when it has come to its end, well or not. */
  over(limitMs?: number): Promise<void>
  /** what is said meanwhile of what goes wrong; null: nothing */
  trouble(): Promise<string | null>
  /** Wants it no more, when it has said that it cannot: what is tried again much later */
  giveUp?(): Promise<void>
  /**
   * Looks at what came of it, and has every machine do something more.
   * @param may what may have been lost, if it is said
   * @returns how it ended, in a few words
   * @throws when something is not as it was promised
   */
  check(may: { lose: boolean; fail: boolean }): Promise<string>
  /** Takes everything away again. */
  remove(): Promise<void>
}

export const operations = {
  sleep: async (lab) => {
    const id = await make(lab)
    return {
      ask: () => lab.server.update(id, { desired_state: 'asleep' }),
      over: (limitMs) => until(lab, id, 'asleep', limitMs),
      trouble: () => reasonOf(lab, id),
      giveUp: async () => {
        await lab.server.update(id, { desired_state: 'running' })
        await until(lab, id, 'running')
      },
      check: async (may) => {
        const slept = (await rowOf(lab, id)).observed_state === 'asleep'
        if (!slept) await sleepAndWake(lab, id)
        else {
          await lab.server.update(id, { desired_state: 'running' })
          await until(lab, id, 'running')
        }
        return `${slept ? 'slept' : 'stayed awake, and slept then'}, ${await goesOnFrom(lab, id, 1, may)}`
      },
      remove: () => remove(lab, id),
    }
  },

  wake: async (lab) => {
    const id = await make(lab)
    await lab.server.update(id, { desired_state: 'asleep' })
    await until(lab, id, 'asleep')
    return {
      ask: () => lab.server.update(id, { desired_state: 'running' }),
      over: (limitMs) => until(lab, id, 'running', limitMs),
      trouble: () => reasonOf(lab, id),
      check: async (may) => {
        const told = await goesOnFrom(lab, id, 1, may)
        // What it slept with is spent, and cannot stand in the way of the next sleep.
        await sleepAndWake(lab, id)
        await goesOnFrom(lab, id, 2, { lose: false, fail: false })
        return told
      },
      remove: () => remove(lab, id),
    }
  },

  checkpoint: async (lab) => {
    const id = await make(lab)
    let checkpoint = 0
    return {
      ask: async () => {
        checkpoint = await askCheckpoint(lab, id)
      },
      over: (limitMs) => untilTaken(lab, checkpoint, limitMs),
      trouble: () => reasonOf(lab, id),
      check: async (may) => {
        await until(lab, id, 'running')
        const { observed_state: state, observed_reason: reason } = await checkpointOf(lab, checkpoint)
        const told = await goesOnFrom(lab, id, 1, may)
        if (state === 'failed' && may.fail && reason) return `failed (${reason}), ${told}`
        if (state !== 'kept') throw new Error(`the checkpoint is ${state}: ${reason}`)
        await askRestore(lab, id, checkpoint)
        await untilRestored(lab, id)
        // Taken anew after its memory was lost, it has what there was then.
        await goesOnFrom(lab, id, 1, { lose: told.startsWith('lost'), fail: false })
        return `kept, ${told}`
      },
      remove: () => remove(lab, id),
    }
  },

  restore: async (lab) => {
    const id = await make(lab)
    const from = await askCheckpoint(lab, id)
    await untilTaken(lab, from)
    await lab.write(id, 2)
    let keeps = 0
    return {
      ask: async () => {
        keeps = await askRestore(lab, id, from)
      },
      over: (limitMs) => untilRestored(lab, id, limitMs),
      trouble: () => reasonOf(lab, id),
      check: async (may) => {
        const { observed_restore_problem: problem } = await rowOf(lab, id)
        const kept = await checkpointOf(lab, keeps)
        if (problem !== null) {
          if (!may.fail) throw new Error(`not restored: ${problem}`)
          return `stayed what it was (${problem}), ${await goesOnFrom(lab, id, 2, may)}`
        }
        const told = await goesOnFrom(lab, id, 1, may)
        if (kept.observed_state !== 'kept') throw new Error(`what it was before is ${kept.observed_state}`)
        await askRestore(lab, id, keeps)
        await untilRestored(lab, id)
        const before = await goesOnFrom(lab, id, 2, { ...may, lose: may.lose || kept.observed_saved_bytes === null })
        return `restored, ${told}; and back, ${before}`
      },
      remove: () => remove(lab, id),
    }
  },

  cp: async (lab) => {
    const id = await make(lab)
    return copyOf(lab, id, async (may) => {
      await until(lab, id, 'running')
      return goesOnFrom(lab, id, 1, may)
    })
  },

  'cp of a sleeper': async (lab) => {
    const id = await make(lab)
    await lab.server.update(id, { desired_state: 'asleep' })
    await until(lab, id, 'asleep')
    return copyOf(lab, id, async () => {
      const { observed_state: state } = await rowOf(lab, id)
      if (state !== 'asleep') throw new Error(`the sleeper is ${state}`)
      await lab.server.update(id, { desired_state: 'running' })
      await until(lab, id, 'running')
      return goesOnFrom(lab, id, 1, { lose: false, fail: false })
    })
  },
} satisfies Record<string, Operation>

export type OperationName = keyof typeof operations

function copyOf(
  lab: FaultLab,
  id: number,
  lookAtSource: (may: { lose: boolean; fail: boolean }) => Promise<string>,
): UnderTest {
  let checkpoint = 0
  let twin = 0
  return {
    ask: async () => {
      checkpoint = await askCheckpoint(lab, id, true)
      twin = await lab.server.insert({ ...machineSize, restore_from: checkpoint, desired_restore: 1 })
    },
    over: async (limitMs) => {
      await lab.server.until(twin, (row) => isReady(row) || row.observed_state === 'failed', limitMs)
    },
    trouble: () => reasonOf(lab, twin),
    check: async (may) => {
      const source = await lookAtSource(may)
      const { observed_state: state, observed_reason: reason, observed_host_key: hostKey } = await rowOf(lab, twin)
      if (state === 'failed') {
        if (!may.fail || !reason) throw new Error(`the copy failed: ${reason}`)
        return `the copy failed (${reason}), ${source}`
      }
      // Of a machine that had lost its memory when it was copied, there is none to go on from.
      const saved = (await checkpointOf(lab, checkpoint)).observed_saved_bytes
      const told = await goesOnFrom(lab, twin, 1, { ...may, lose: may.lose || saved === null })
      if (hostKey?.equals((await rowOf(lab, id)).observed_host_key ?? Buffer.alloc(0)))
        throw new Error('the copy has the host key of its source')
      return `copied, ${told}; its source: ${source}`
    },
    remove: async () => {
      await remove(lab, twin)
      await remove(lab, id)
    },
  }
}

type Row = {
  observed_state: string
  observed_reason: string | null
  observed_ready_at: Date | null
  observed_host_key: Buffer | null
  observed_restore: number
  desired_restore: number
  observed_restore_problem: string | null
  observed_saved_bytes: number | null
}

async function rowOf(lab: FaultLab, id: number): Promise<Row> {
  const [row] = await lab.server.sql<Row[]>`select * from machines where id = ${id}`
  if (!row) throw new Error(`no machine ${id}`)
  return row
}

async function checkpointOf(lab: FaultLab, id: number): Promise<Row> {
  const [row] = await lab.server.sql<Row[]>`select * from checkpoints where id = ${id}`
  if (!row) throw new Error(`no checkpoint ${id}`)
  return row
}

const reasonOf = async (lab: FaultLab, id: number) => (await rowOf(lab, id)).observed_reason

function isReady(row: Pick<Row, 'observed_state' | 'observed_ready_at'>): boolean {
  return row.observed_state === 'running' && row.observed_ready_at !== null
}

/** A machine that runs and has written once. */
async function make(lab: FaultLab): Promise<number> {
  const id = await lab.server.insert(machineSize)
  await until(lab, id, 'running')
  await lab.write(id, 1)
  return id
}

async function until(lab: FaultLab, id: number, state: 'running' | 'asleep', limitMs = defaultLimitMs): Promise<void> {
  await lab.server.until(
    id,
    (row) => {
      if (row.observed_state === 'failed') throw new Error(`it failed: ${row.observed_reason}`)
      return state === 'running' ? isReady(row) : row.observed_state === state
    },
    limitMs,
  )
}

async function sleepAndWake(lab: FaultLab, id: number): Promise<void> {
  await lab.server.update(id, { desired_state: 'asleep' })
  await until(lab, id, 'asleep')
  await lab.server.update(id, { desired_state: 'running' })
  await until(lab, id, 'running')
}

async function untilRestored(lab: FaultLab, id: number, limitMs = defaultLimitMs): Promise<void> {
  await lab.server.until(
    id,
    (row) => {
      if (row.observed_state === 'failed') throw new Error(`it failed: ${row.observed_reason}`)
      const { observed_restore: done, desired_restore: wanted } = row as unknown as Row
      return done === wanted && isReady(row)
    },
    limitMs,
  )
}

async function untilTaken(lab: FaultLab, id: number, limitMs = defaultLimitMs): Promise<void> {
  for (const deadline = Date.now() + limitMs; (await checkpointOf(lab, id)).observed_state === 'waiting'; ) {
    if (Date.now() > deadline) throw new Error(`no checkpoint within ${limitMs} ms`)
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
}

async function askCheckpoint(lab: FaultLab, id: number, forCopy = false): Promise<number> {
  const [row] = await lab.server.sql<{ id: number }[]>`
    insert into checkpoints (machine_id, account_id, for_copy) values (${id}, 1, ${forCopy}) returning id`
  return row?.id ?? 0
}

async function askRestore(lab: FaultLab, id: number, from: number): Promise<number> {
  return lab.server.sql.begin(async (sql) => {
    const [{ keeps } = { keeps: 0 }] = await sql<{ keeps: number }[]>`
      insert into checkpoints (machine_id, account_id) values (${id}, 1) returning id as keeps`
    await sql`update machines set desired_state = 'running', restore_from = ${from}, restore_keeps = ${keeps},
      desired_restore = desired_restore + 1 where id = ${id}`
    return keeps
  })
}

async function remove(lab: FaultLab, id: number): Promise<void> {
  await lab.server.update(id, { desired_state: 'gone' })
  await lab.server.until(id, (row) => row.observed_state === 'gone', defaultLimitMs)
}

/**
 * Sees to it that a machine holds what it should, in memory and on disk alike, and has it write once more. One that
 * has lost its memory must have said so.
 */
async function goesOnFrom(
  lab: FaultLab,
  id: number,
  epoch: number,
  may: { lose: boolean; fail: boolean },
): Promise<string> {
  const { disk, memory } = await lab.held(id)
  const { observed_reason: reason } = await rowOf(lab, id)
  if (!memory) throw new Error('it does not run')
  if (disk.epoch !== epoch) throw new Error(`its disk is of ${disk.epoch}, and should be of ${epoch}`)
  if (memory.epoch === 0) {
    const said = await lab.server.sql`select from events where machine_id = ${id} and kind = 'machine.memory-lost'`
    if (!may.lose) throw new Error(`it has lost its memory: ${reason}`)
    await lab.write(id, epoch + 1)
    return said.length > 0 ? `lost its memory and said so (${reason})` : 'lost its memory: its server had ended'
  }
  if (memory.epoch !== disk.epoch || memory.ran !== disk.ran) {
    throw new Error(`its memory is of ${memory.epoch}.${memory.ran}, and its disk of ${disk.epoch}.${disk.ran}`)
  }
  if (reason !== null) throw new Error(`all is there, and it says: ${reason}`)
  await lab.write(id, epoch + 1)
  return 'all there'
}

/** A start of a vmhost, and whatever it makes good then. */
const defaultLimitMs = 90_000
