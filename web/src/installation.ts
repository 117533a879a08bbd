/** What the gateway writes into the page: where this is and who is signed in. */
export type Installation = {
  domain: string
  /** `ssh -p 2222 host`, to put a command behind */
  lobby: string
  /** where a machine's primary port is shown, with NAME in the place of its name */
  machineUrl: string
  account: number
  /** how the person is called: an address, or `account 3` */
  who: string
  /** the operator: sees hosts, accounts and rates */
  isOperator: boolean
  /** notices that nobody of the account had read when the page came */
  notices: number
}

export const installation: Installation = JSON.parse(
  document.querySelector<HTMLMetaElement>('meta[name=berth]')?.content ?? '{}',
)

export function machineUrl(name: string): string {
  return installation.machineUrl.replace('NAME', name)
}
