import { runCommand } from './command.ts'

/**
 * Makes the kernel forget every connection from or to an address. A new machine may get the address of one that is gone,
 * whose connections outlive it, established ones by days: what their peers still send would be let in to the new machine
 * as answers, and they would count against what it may open.
 * @throws NetworkError
 * @see conntrack(8)
 */
export async function forgetFlows(address: string): Promise<void> {
  for (const end of ['--orig-src', '--orig-dst']) {
    await runCommand('conntrack', ['-D', end, address]).catch((error: Error) => {
      // Finding none is a failure to conntrack.
      if (!error.message.includes(' 0 flow entries have been deleted')) throw error
    })
  }
}
