import { createHash, randomUUID } from 'node:crypto'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Logger } from 'pino'
import type { AgentChannel } from '../guest/channel.ts'
import { environmentOver } from '../guest/environment.ts'
import type { MachineIdentity } from '../guest/messages.ts'
import type { MachineFiles, MachineRecord } from '../storage/store.ts'
import { authorizedKeyLine } from './identity.ts'
import type { MachineRow } from './rows.ts'
import type { World } from './world.ts'

/**
 * What a guest has been told of itself: who it is, and whose keys are good.
 *
 *     nothing --introduce--> told --the row or the keys change--> behind --update--> told
 *     any --the guest boots again--> nothing
 *
 * What it was told last is kept beside its disk, so that a vmhost that adopts it need not disturb it. A guest that
 * does not take a change keeps what it has, and is told again at the next look. What a guest says decides when it is
 * told, and a guest is hostile: it is told one thing at a time, and no more often than once in `leastBetweenMs`.
 */
export class Introduction {
  readonly #options: IntroductionOptions
  /** hash of the identity that it was told in this boot */
  #told: string | undefined
  #keysBehind = false
  #telling = 0
  /** grows with every boot: what was told to the one before does not count */
  #boot = 0
  #underWay: { readonly boot: number; readonly identified: boolean; readonly done: Promise<void> } | undefined
  #lastAt = Number.NEGATIVE_INFINITY

  constructor(options: IntroductionOptions) {
    this.#options = options
  }

  /** In this boot, it has heard who it is. */
  get made(): boolean {
    return this.#told !== undefined
  }

  /** The guest boots again: its memory knows nothing any more. */
  forget(): void {
    this.#boot++
    this.#told = undefined
  }

  /**
   * Tells it who it is, or, when it has heard that already, which keys are good now. Asked for again meanwhile, it is
   * the same telling.
   * @param identified it says that it knows who it is
   * @throws ChannelError, or the database's errors
   */
  introduce(identified: boolean): Promise<void> {
    const underWay = this.#underWay
    // One that brings the keys alone is no answer to a guest that knows nothing.
    if (underWay?.boot === this.#boot && (identified || !underWay.identified)) return underWay.done
    const done = this.#tell(identified).finally(() => {
      if (this.#underWay?.done === done) this.#underWay = undefined
    })
    this.#underWay = { boot: this.#boot, identified, done }
    return done
  }

  async #tell(identified: boolean): Promise<void> {
    const { channel, files, limitMs, log } = this.#options
    const boot = this.#boot
    this.#telling++
    try {
      const waitMs = this.#lastAt + leastBetweenMs - performance.now()
      this.#lastAt = performance.now() + Math.max(0, waitMs)
      if (waitMs > 0) await sleep(waitMs, undefined, { ref: false })
      const identity = await this.#identity()
      const fingerprint = hashOf(identity)
      const path = join(files.directory, 'identity')
      const told = identified ? await readFile(path, 'utf8').catch(() => undefined) : undefined
      if (told === fingerprint) await channel.updateKeys(identity.authorizedKeys, { timeoutMs: limitMs / 8 })
      else {
        await channel.identify(identity, { timeoutMs: limitMs })
        // On a full disk the next vmhost tells it all once more. It is told all the same, and waited for.
        await writeFile(path, fingerprint, { mode: 0o600 }).catch((error: unknown) =>
          log.warn({ err: error }, 'what it was told cannot be noted'),
        )
      }
      if (boot === this.#boot) this.#told = fingerprint
    } finally {
      this.#telling--
    }
  }

  /** Gives it the keys as they are now; one that has not heard who it is gets them with that. */
  async updateKeys(): Promise<void> {
    if (this.#told === undefined) return
    this.#keysBehind = true
    try {
      await this.#options.channel.updateKeys(await this.#keys())
      this.#keysBehind = false
    } catch (error) {
      this.#options.log.warn({ err: error }, 'the machine has its former keys until the next look')
    }
  }

  /** It stood still, and its clock with it: it is told all of it once more, the time among it. */
  async tellAgain(): Promise<void> {
    // What is on its way may have left before it stood still.
    await this.#underWay?.done.catch(() => {})
    try {
      await this.introduce(false)
    } catch (error) {
      this.#options.log.warn({ err: error }, 'the machine does not hear what time it is')
    }
  }

  /** A machine that was renamed, or given other variables, hears of it while it runs; and of keys it did not take. */
  async update(): Promise<void> {
    if (this.#told === undefined || this.#telling > 0) return
    this.#telling++
    try {
      if (this.#told !== hashOf(await this.#identity())) await this.introduce(true)
      else if (this.#keysBehind) await this.updateKeys()
    } catch (error) {
      this.#options.log.warn({ err: error }, 'the machine has its former identity until the next look')
    } finally {
      this.#telling--
    }
  }

  async #identity(): Promise<MachineIdentity> {
    const { files, owner } = this.#options
    const { name, env, command } = owner.row
    const { settings } = files.record
    const service = serviceOf(command, files.record)
    return {
      hostname: name,
      loginUser: files.record.loginUser,
      authorizedKeys: await this.#keys(),
      environment: settings ? environmentOver(settings.environment, env) : env,
      ...(service ? { service } : {}),
      hostKey: files.hostKey,
      machineId: files.record.systemId,
      ...this.#options.moved?.(),
      ...(this.#options.isNobody?.() ? { bootId: randomUUID() } : {}),
    }
  }

  async #keys(): Promise<string[]> {
    const { world, owner } = this.#options
    const wires = await world.rows.keysOf(owner.row.accountId)
    return [world.gatewayKey(), ...wires.map(authorizedKeyLine)].filter((line) => line !== undefined)
  }
}

export type IntroductionOptions = {
  readonly channel: Pick<AgentChannel, 'identify' | 'updateKeys'>
  readonly files: Pick<MachineFiles, 'directory' | 'record' | 'hostKey'>
  readonly owner: { readonly row: Pick<MachineRow, 'name' | 'env' | 'command' | 'accountId'> }
  readonly world: Pick<World, 'gatewayKey'> & { readonly rows: Pick<World['rows'], 'keysOf'> }
  /** where it is now, when it was another machine at its start */
  readonly moved?: () => { readonly address: string; readonly commandLine: string } | undefined
  /** it goes on from a template, and was not told who it is before */
  readonly isNobody?: () => boolean
  readonly log: Pick<Logger, 'warn'>
  /** until a guest has taken its identity; keys alone are taken in an eighth of that, or not at all */
  readonly limitMs: number
}

/** A boot takes longer than that: only a guest that says hello for the sake of it ever waits. */
const leastBetweenMs = 1_000

/** What exe-init runs where the image has no init of its own: the image's own program, or the owner's choice. */
function serviceOf(command: string, { init, settings }: MachineRecord): MachineIdentity['service'] {
  if (init || !settings || command === 'none') return undefined
  if (command === 'auto') return settings.service ?? undefined
  const { uid, gid, workingDirectory } = settings.service ?? { uid: 0, gid: 0, workingDirectory: '/' }
  // Wherever one is: an image without any has the tools'.
  return { arguments: ['sh', '-c', command], uid, gid, workingDirectory }
}

function hashOf({ hostname, loginUser, environment, machineId }: MachineIdentity): string {
  // Keys go their own way, and none of the secrets is kept twice.
  return createHash('sha256')
    .update(JSON.stringify([hostname, loginUser, environment, machineId]))
    .digest('hex')
}
