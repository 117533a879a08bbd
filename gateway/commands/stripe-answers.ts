/** What Stripe answers, in words for people. */
import { failureOf, type StripeFailure } from '../billing/stripe/client.ts'
import { CommandError } from './error.ts'

export function sayFailure({ status, message }: StripeFailure): string {
  return status === undefined ? 'Stripe does not answer' : `Stripe refuses: ${message}`
}

/** @throws CommandError in place of an error of Stripe's */
export async function asked<T>(ask: () => Promise<T>): Promise<T> {
  try {
    return await ask()
  } catch (error) {
    const failure = failureOf(error)
    if (!failure) throw error
    const isAway = failure.status === undefined || failure.status >= 500 || failure.status === 429
    throw new CommandError(isAway ? 'payment.away' : 'payment.refused', isAway ? 5 : 1, sayFailure(failure), {
      wayOn: isAway ? 'try again in a moment; nothing is done twice' : 'the operator finds why with: billing stripe',
    })
  }
}
