import { effect, signal } from '@preact/signals'
import { installation } from '../installation.ts'
import { isSeen } from '../parts/media.ts'
import { exec } from './exec.ts'
import { newsOf } from './live.ts'

/** How many notices nobody of the account has read: as the page came, and then as it is told of others. */
export const unread = signal(installation.notices)

/** Begins to follow them; once. */
export function startNotices(): void {
  const news = newsOf('notices')
  let seen = news.peek()
  let isAsking = false
  const look = async () => {
    if (isAsking) return
    isAsking = true
    try {
      while (isSeen.peek() && seen !== news.peek()) {
        seen = news.peek()
        unread.value = (await exec<{ unread: number }>(['billing', 'notices'])).unread
      }
    } catch {
      // The stream that comes back after Berth was away is news, too.
    } finally {
      isAsking = false
    }
  }
  effect(() => {
    void news.value
    if (isSeen.value) void look()
  })
}
