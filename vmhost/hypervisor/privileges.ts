import { chmodSync, statSync } from 'node:fs'

/**
 * Lets the hypervisors' users open the device that their network cards come from, as udev does
 * (50-udev-default.rules); a server without udev has it for root alone. It lets nobody do anything by itself: a tap
 * is opened by the user that it was made for.
 */
export function openDevices(): void {
  try {
    if ((statSync('/dev/net/tun').mode & 0o006) !== 0o006) chmodSync('/dev/net/tun', 0o666)
  } catch {
    // No such device here; who needs it says so.
  }
}

/**
 * How a hypervisor that is not root comes to /dev/kvm. Debian gives it to the group `kvm` and nobody else, other
 * systems to everybody; that stays as the operator has it.
 * @param device tests: another file
 * @returns the group that it needs, none when everybody may open it; or why there is no way, and what would open one
 */
export function kvmGroups(device = '/dev/kvm'): { groups: readonly number[] } | { problem: string } {
  const found = statSync(device, { throwIfNoEntry: false })
  if (!found) return { problem: `${device} is missing` }
  const { mode, gid } = found
  if ((mode & 0o006) === 0o006) return { groups: [] }
  // root's own group is no group to give away: its files would come along.
  if (gid !== 0 && (mode & 0o060) === 0o060) return { groups: [gid] }
  return {
    problem: `${device} is open to root alone, which hypervisors are not (chgrp kvm ${device} && chmod 660 ${device} opens it to them)`,
  }
}

/**
 * Parameters of setpriv: the user of its own, no group but the given ones, no capability, no way to gain any.
 * @see setpriv(1)
 */
export function privileges(uid: number, groups: readonly number[]): string[] {
  return [
    `--reuid=${uid}`,
    `--regid=${uid}`,
    groups.length > 0 ? `--groups=${groups.join()}` : '--clear-groups',
    '--no-new-privs',
    '--inh-caps=-all',
    '--ambient-caps=-all',
    '--bounding-set=-all',
    '--',
  ]
}
