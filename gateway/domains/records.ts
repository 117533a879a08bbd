/**
 * What DNS has to hold for a domain of somebody's own. Everything that proves a claim names the account: a record that
 * was left behind, or that points here for somebody else, lets nobody else have the domain.
 */
import { CHALLENGE_LABEL, CUSTOM_LABEL } from '../dns/zone.ts'
import type { Settings } from '../settings.ts'

export type WantedRecord = { name: string; type: 'CNAME' | 'TXT' | 'A' | 'AAAA'; value: string }

/** The names that an account's records lead to, and its TXT record. They are the same whatever its machines are called. */
export type ProofNames = {
  /** what a domain points at by CNAME; the gateways' addresses are there */
  target: string
  /** where a domain's `_acme-challenge` leads by CNAME */
  challengeTarget: string
  /** at `_berth.` and the domain */
  txt: string
}

export function proofNames(
  proof: string,
  { domain, machineDomain }: Pick<Settings, 'domain' | 'machineDomain'>,
): ProofNames {
  return {
    target: `${proof}.${CUSTOM_LABEL}.${machineDomain.toLowerCase()}`,
    challengeTarget: `${proof}.${CHALLENGE_LABEL}.${domain.toLowerCase()}`,
    txt: `berth-proof=${proof}`,
  }
}

export function txtName(domain: string): string {
  return `_berth.${domain}`
}

export function challengeName(domain: string): string {
  return `${CHALLENGE_LABEL}.${domain}`
}

/**
 * The records to set, as a person is told them.
 * @param addresses of the gateways, for a name that can have no CNAME because it heads a zone
 * @returns `records` do everything where a CNAME can stand; `instead` is for the head of a zone
 */
export function wantedRecords(
  { domain, wildcard, isDelegated }: { domain: string; wildcard: boolean; isDelegated: boolean },
  names: ProofNames,
  addresses: readonly string[],
): { records: WantedRecord[]; instead: WantedRecord[] } {
  const txt: WantedRecord = { name: txtName(domain), type: 'TXT', value: names.txt }
  const direct = addresses.map(
    (value): WantedRecord => ({ name: domain, type: value.includes(':') ? 'AAAA' : 'A', value }),
  )
  const cname: WantedRecord = { name: domain, type: 'CNAME', value: names.target }
  if (!wildcard) return { records: [cname], instead: [txt, ...direct] }
  const proof: WantedRecord = isDelegated
    ? { name: challengeName(domain), type: 'CNAME', value: names.challengeTarget }
    : txt
  return {
    records: [proof, { ...cname, name: `*.${domain}` }, cname],
    instead: [proof, { ...cname, name: `*.${domain}` }, ...direct],
  }
}
