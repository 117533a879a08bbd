import { signal } from '@preact/signals'
import { installation } from '../installation.ts'

/** How many notices nobody of the account has read, as the page came; the list of them keeps it true. */
export const unread = signal(installation.notices)
