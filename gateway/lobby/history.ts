const LINES = 200
const LINE_LENGTH = 4096
const ACCOUNTS = 1000

/**
 * The lines of one account, oldest first. They stay in this process's memory and nowhere else: a line may carry
 * `--env TOKEN=…`, and secrets at rest are encrypted or hashed, which a history is not worth. So they are
 * there at the next visit, and gone when the gateway is restarted.
 */
export class History {
  readonly #lines: string[] = []

  get lines(): readonly string[] {
    return this.#lines
  }

  /** A line that begins with a blank, that is very long, or that repeats the last one is not kept. */
  add(line: string): void {
    if (line.startsWith(' ') || !line.trim() || line.length > LINE_LENGTH || line === this.#lines.at(-1)) return
    this.#lines.push(line)
    if (this.#lines.length > LINES) this.#lines.shift()
  }
}

const histories = new Map<number, History>()

/** An account's history in this process; the account longest away is forgotten first. */
export function historyOf(accountId: number): History {
  const history = histories.get(accountId) ?? new History()
  histories.delete(accountId)
  histories.set(accountId, history)
  const [oldest] = histories.keys()
  if (histories.size > ACCOUNTS && oldest !== undefined) histories.delete(oldest)
  return history
}
