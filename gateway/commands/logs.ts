import type { Context } from './command.ts'
import { defineCommand } from './command.ts'
import { machineNames } from './complete.ts'
import { ConsoleText } from './console-text.ts'
import { usageError } from './error.ts'
import { reachable } from './machine-steps.ts'

const FOLLOW_CHECK_MS = 5_000

type Chunk = { seq: number; boot: number; bytes: Buffer }

export const logs = defineCommand({
  name: 'logs',
  group: 'machines',
  onMachines: true,
  summary: "a machine's console, the last 256 KiB of it",
  description:
    'What kernel and init said, with everything that could drive your terminal taken out. The whole log is a file on the server.',
  flags: {
    follow: { type: 'boolean', short: 'f', summary: 'go on as it grows, until Ctrl-C' },
    boot: { type: 'boolean', summary: 'only since its last start' },
  },
  arguments: { name: { label: 'NAME', complete: machineNames } },
  examples: ['logs demo', 'logs demo -f --boot'],
  async run(context, { flags, args }) {
    const { app, caller } = context
    const machine = await reachable(app, caller, args.name)
    if (flags.follow && context.json && !context.io.tell)
      throw usageError('logs -f has no end, so it has no --json', `logs ${args.name} --json`)
    const chunks = await read(context, machine.id, -1, flags.boot === true)
    const text = new ConsoleText()
    if (!flags.follow) {
      const whole = chunks.map((chunk) => text.add(chunk.bytes)).join('') + text.end()
      if (whole === '') await context.remark(`${machine.name} has said nothing on its console yet\n`)
      return {
        json: { vm_name: machine.name, log: whole },
        text: whole && !whole.endsWith('\n') ? `${whole}\n` : whole,
      }
    }
    await follow(context, machine.id, chunks, text, flags.boot === true)
    return { json: null, text: '' }
  },
})

/** Primary key (machine_id, seq). */
async function read({ app }: Context, machineId: number, after: number, lastBoot: boolean): Promise<Chunk[]> {
  return await app.sql<Chunk[]>`
    select seq, boot, bytes from console_chunks where machine_id = ${machineId} and seq > ${after}
      ${lastBoot ? app.sql`and boot = (select max(boot) from console_chunks where machine_id = ${machineId})` : app.sql``}
    order by seq`
}

async function follow(context: Context, machineId: number, first: Chunk[], text: ConsoleText, lastBoot: boolean) {
  const { app, caller, signal } = context
  let after = -1
  let chunks = first
  for (;;) {
    // Listening begins before the rows are read, or chunks between the two would wait for the next ones.
    const { promise: news, resolve } = Promise.withResolvers<void>()
    const stops = [
      app.news.on('console', (id) => id === String(machineId) && resolve()),
      app.news.onRescan(() => resolve()),
    ]
    const timer = setTimeout(resolve, FOLLOW_CHECK_MS)
    const onAbort = () => resolve()
    signal.addEventListener('abort', onAbort, { once: true })
    try {
      if (after >= 0 || chunks.length === 0) chunks = await read(context, machineId, after, lastBoot && after < 0)
      for (const chunk of chunks) {
        await context.print(text.add(chunk.bytes))
        after = Math.max(after, chunk.seq)
      }
      signal.throwIfAborted()
      if (chunks.length) continue
      // The grant may have ended, or the machine.
      if (!(await app.machines.byId(machineId, caller))) return
      await news
      signal.throwIfAborted()
    } finally {
      clearTimeout(timer)
      signal.removeEventListener('abort', onAbort)
      for (const stop of stops) stop()
    }
  }
}
