import { isIPv6, SocketAddress } from 'node:net'
import type { Lookup } from './lookup.ts'
import { challengeName, type ProofNames, txtName } from './records.ts'

export type Claim = { domain: string; wildcard: boolean }

/** Stands for every name below a wildcard. */
const ANY_LABEL = 'berth-check'

/**
 * Whether DNS holds the account's own proof: its TXT record, or a CNAME that leads to a name of this account alone.
 * Only the first step of a CNAME counts: where it leads on is for others to say.
 * @throws LookupError
 */
export async function isProved({ domain, wildcard }: Claim, names: ProofNames, lookup: Lookup): Promise<boolean> {
  const [texts, leads] = await Promise.all([
    lookup.txt(txtName(domain)),
    wildcard ? lookup.cname(challengeName(domain)) : lookup.cname(domain),
  ])
  return texts.includes(names.txt) || leads.includes(wildcard ? names.challengeTarget : names.target)
}

/**
 * Whether all that DNS says of the domain leads to this installation. Of a wildcard, a name below it is looked at.
 * @param addresses that the gateways know they have; those that DNS gives the account's target count too, for the
 *   gateways may be behind a router that has the public address
 * @returns `elsewhere`: addresses that are not ours
 * @throws LookupError
 */
export async function whereItPoints(
  { domain, wildcard }: Claim,
  names: ProofNames,
  lookup: Lookup,
  addresses: readonly string[],
): Promise<{ isHere: boolean; elsewhere: string[] }> {
  const name = wildcard ? `${ANY_LABEL}.${domain}` : domain
  // Whose addresses those are we know without asking, and a resolver may not have heard of the record yet.
  if ((await lookup.cname(name)).includes(names.target)) return { isHere: true, elsewhere: [] }
  const [found, target] = await Promise.all([lookup.addresses(name), lookup.addresses(names.target).catch(() => [])])
  const ours = new Set([...addresses, ...target].map(canonical))
  const elsewhere = found.filter((address) => !ours.has(canonical(address)))
  return { isHere: found.length > 0 && elsewhere.length === 0, elsewhere }
}

/** Whether a wildcard's challenges are answered by this name server. @throws LookupError */
export async function isDelegated({ domain }: Claim, names: ProofNames, lookup: Lookup): Promise<boolean> {
  return (await lookup.cname(challengeName(domain))).includes(names.challengeTarget)
}

/** One spelling for each address: IPv6 has many. */
function canonical(address: string): string {
  return new SocketAddress({ address, family: isIPv6(address) ? 'ipv6' : 'ipv4' }).address
}
