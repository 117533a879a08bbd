import { spawn } from 'node:child_process'
import { createInterface } from 'node:readline'
import type { NetworkContext } from './types.ts'

/**
 * Calls `onLoss` whenever somebody deletes a table of ours. `systemctl reload nftables` does: Debian's nftables.conf
 * begins with `flush ruleset`, and until the rules are back machines would reach each other and private networks.
 * Our own updates never delete a table.
 * @see prctl(2), PR_SET_PDEATHSIG
 */
export function watchTables(onLoss: () => void, { log }: NetworkContext): { readonly ended: boolean; close(): void } {
  // A vmhost that is killed takes it along: it would otherwise wait for its next event for ever.
  const monitor = spawn('setpriv', ['--pdeathsig', 'KILL', '--', 'nft', 'monitor', 'destroy', 'tables'], {
    env: { PATH: `${process.env.PATH ?? '/usr/bin:/bin'}:/usr/sbin:/sbin`, LC_ALL: 'C' },
    stdio: ['ignore', 'pipe', 'ignore'],
  })
  const state = { ended: false, closed: false }
  const end = (): void => {
    state.ended = true
    if (!state.closed) log.warn('nft monitor ended; a flushed firewall is repaired by the next reconcile only')
  }
  monitor.once('error', end)
  monitor.once('exit', end)
  createInterface({ input: monitor.stdout }).on('line', (line) => {
    if (/^delete table (inet|arp|netdev) berth\b/.test(line)) onLoss()
  })
  return {
    get ended() {
      return state.ended
    },
    close() {
      state.closed = true
      monitor.kill('SIGKILL')
    },
  }
}
