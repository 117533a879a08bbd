import { Resolver } from 'node:dns/promises'

/** DNS as the rest of the world sees it; what there is not is an empty list. */
export type Lookup = {
  txt(name: string): Promise<string[]>
  /** the name that a CNAME at `name` itself leads to: the first step, not the last */
  cname(name: string): Promise<string[]>
  /** IPv4 and IPv6, wherever CNAMEs lead */
  addresses(name: string): Promise<string[]>
}

/** `message` is a sentence for the person who looks after the domain. */
export class LookupError extends Error {
  override readonly name = 'LookupError'
}

const TRY_MS = 2_000
const TRIES = 3
const NONE = new Set(['ENOTFOUND', 'ENODATA'])

/** @param servers `address` or `address:port`; the system's own unless given */
export function systemLookup(servers?: readonly string[]): Lookup {
  const ask = async <T>(name: string, query: (resolver: Resolver) => Promise<T[]>): Promise<T[]> => {
    // A resolver of its own for each question: one that is given up takes no other with it.
    const resolver = new Resolver({ timeout: TRY_MS, tries: TRIES })
    if (servers) resolver.setServers(servers)
    try {
      return await query(resolver)
    } catch (cause) {
      if (NONE.has((cause as NodeJS.ErrnoException).code ?? '')) return []
      throw new LookupError(`the name servers of ${name} do not answer`, { cause })
    }
  }
  return {
    txt: async (name) => (await ask(name, (resolver) => resolver.resolveTxt(name))).map((parts) => parts.join('')),
    cname: async (name) => (await ask(name, (resolver) => resolver.resolveCname(name))).map(plain),
    async addresses(name) {
      const [four, six] = await Promise.all([
        ask(name, (resolver) => resolver.resolve4(name)),
        ask(name, (resolver) => resolver.resolve6(name)),
      ])
      return [...four, ...six]
    },
  }
}

/** Compared without case and last dot. */
function plain(name: string): string {
  return name.toLowerCase().replace(/\.$/, '')
}
