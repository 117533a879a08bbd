/** What an ACME directory says when it refuses (RFC 8555, 6.7; RFC 9457). */
import { z } from 'zod'

/** What the directory refused; `message` is its own sentence. */
export class AcmeError extends Error {
  override readonly name = 'AcmeError'
  /** last part of the problem's URN: `rateLimited`, `unauthorized` … (RFC 8555, 6.7) */
  readonly type: string
  readonly status: number
  /** the directory said when to come again */
  readonly retryAt: Date | undefined

  constructor(
    message: string,
    options: ErrorOptions & { type?: string; status?: number; retryAt?: Date | undefined } = {},
  ) {
    super(message, options)
    this.type = options.type ?? ''
    this.status = options.status ?? 0
    this.retryAt = options.retryAt
  }
}

export const problemShape = z.object({
  type: z.string().default('about:blank'),
  detail: z.string().default(''),
  subproblems: z.array(z.object({ detail: z.string().default('') })).default([]),
})

type ProblemDocument = z.infer<typeof problemShape>

/** @param otherwise the sentence where the directory gives none */
export function problem(
  document: ProblemDocument | undefined,
  status: number,
  otherwise: string,
  retryAt?: Date,
): AcmeError {
  const details = [document?.detail ?? '', ...(document?.subproblems ?? []).map(({ detail }) => detail)]
  const message = details.filter((detail) => detail !== '').join('; ') || otherwise
  return new AcmeError(message, { type: document?.type.split(':').at(-1) ?? '', status, retryAt })
}

/** @returns undefined for a body that is no problem document */
export function readProblem(text: string): ProblemDocument | undefined {
  try {
    return problemShape.parse(JSON.parse(text))
  } catch {
    return undefined
  }
}
