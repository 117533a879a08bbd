/** The ways to a machine, as one types or opens them. */
import type { MachineDocument } from './documents.ts'

export type Way = { what: string; text: string; href?: string }

/** Of these ports each has an address of its own. */
export const PORTS = { least: 3000, most: 9999 } as const

/** @param domains of the machine's own, without a scheme */
export function waysTo(machine: MachineDocument, domains: readonly { https_url: string }[] = []): Way[] {
  const { ssh_dest, ssh_host, ssh_port, login_user, https_url, vm_name } = machine
  const isUsual = ssh_port === 22
  const jump = isUsual ? ssh_host : `${ssh_host}:${ssh_port}`
  return [
    { what: 'SSH', text: `ssh ${isUsual ? '' : `-p ${ssh_port} `}${ssh_dest}` },
    { what: 'SSH, end to end', text: `ssh -J ${jump} ${login_user ?? 'dev'}@${vm_name}` },
    { what: 'Files', text: `scp ${isUsual ? '' : `-P ${ssh_port} `}FILE ${ssh_dest}:` },
    { what: 'Web', text: https_url, href: https_url },
    ...domains.map((one): Way => ({ what: 'Web', text: one.https_url, href: one.https_url })),
  ]
}

/** Where a port is shown, with a host name of its own: that works also where only one port is open. */
export function portUrl(machine: Pick<MachineDocument, 'https_url' | 'vm_name'>, port: number): string {
  return machine.https_url.replace(`//${machine.vm_name}.`, `//${machine.vm_name}--${port}.`)
}
