/** Seconds until what failed at Stripe is tried again; then daily. */
const WAITS = [30, 120, 600, 1800, 3600, 3 * 3600, 6 * 3600, 12 * 3600]
const DAILY = 24 * 3600

/** @param attempts that failed before this one */
export function waitSeconds(attempts: number): number {
  return WAITS[attempts] ?? DAILY
}

/** Seconds until what somebody else is asking Stripe about is looked at again. */
export const BUSY_S = 5
