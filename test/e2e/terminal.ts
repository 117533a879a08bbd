import { spawn } from 'node-pty'

export type Terminal = {
  /** everything printed so far, raw */
  output(): string
  /** types text; `\r` is Enter */
  type(text: string): void
  resize(columns: number, rows: number): void
  /** waits until what was printed after the last match contains the pattern, and moves past it; returns the match */
  expect(pattern: RegExp | string, timeoutMs?: number): Promise<string>
  /** resolves with the exit status */
  readonly ended: Promise<number>
  kill(): void
}

type Waiter = {
  pattern: RegExp
  resolve: (match: string) => void
  reject: (error: Error) => void
  timer: NodeJS.Timeout
}

/** A program on a real pseudo terminal, read and typed at as a person would. */
export function openTerminal(
  program: string,
  parameters: readonly string[],
  { cwd, home, columns = 100, rows = 30 }: { cwd: string; home: string; columns?: number; rows?: number },
): Terminal {
  const pty = spawn(program, [...parameters], {
    cols: columns,
    rows,
    name: 'xterm-256color',
    cwd,
    env: { ...process.env, HOME: home, TERM: 'xterm-256color' },
  })
  let printed = ''
  let position = 0
  let waiter: Waiter | undefined
  const look = () => {
    if (!waiter) return
    const match = waiter.pattern.exec(printed.slice(position))
    if (!match) return
    position += match.index + match[0].length
    clearTimeout(waiter.timer)
    const { resolve } = waiter
    waiter = undefined
    resolve(match[0])
  }
  pty.onData((chunk) => {
    printed += chunk
    look()
  })
  const ended = new Promise<number>((resolve) => {
    pty.onExit(({ exitCode }) => {
      resolve(exitCode)
      if (waiter)
        waiter.reject(new Error(`ended with ${exitCode} before ${waiter.pattern}:\n${printed.slice(position)}`))
    })
  })
  return {
    output: () => printed,
    type: (text) => pty.write(text),
    resize: (width, height) => pty.resize(width, height),
    expect: (pattern, timeoutMs = 60_000) =>
      new Promise((resolve, reject) => {
        const expression =
          typeof pattern === 'string' ? new RegExp(pattern.replace(/[.*+?^${}()|[\]\\]/g, '\\$&')) : pattern
        const timer = setTimeout(() => {
          waiter = undefined
          reject(new Error(`did not see ${expression} in ${timeoutMs} ms:\n${printed.slice(position)}`))
        }, timeoutMs)
        waiter = { pattern: expression, resolve, reject, timer }
        look()
      }),
    ended,
    kill: () => pty.kill('SIGKILL'),
  }
}
