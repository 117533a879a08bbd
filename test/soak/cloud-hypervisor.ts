import { spawn } from 'node:child_process'
import { named, proof } from '../../vmhost/hypervisor/testing/named.ts'
import { inOwnNetwork, insideNested, startNested } from '../../vmhost/hypervisor/testing/nested.ts'
import { CHECKOUT } from '../e2e/product.ts'
import type { Soaked, SoakOptions } from './kind.ts'

/**
 * Sleep and wake under Cloud Hypervisor, with a real guest: here where KVM works, else in a guest whose emulated
 * processor has virtualisation. See vmhost/testing/cycles.ts for what of a vmhost is in it.
 */
export async function soakCloudHypervisor({ rounds }: SoakOptions): Promise<Soaked> {
  const proved = await proof()
  if (named === undefined || proved === undefined) {
    console.log('CLOUD_HYPERVISOR names no program, so nothing was run')
    return { passed: 0, failed: 0 }
  }
  if (proved.problem !== undefined && !proved.isKvm) throw new Error(proved.problem)
  if (proved.problem === undefined) return counted(await runHere(rounds))
  console.log(`${proved.problem}: an emulated server is booted that has KVM, which takes minutes`)
  await using server = await startNested(named)
  return counted(await server.run(insideNested([...script, '--emulated', '--rounds', String(rounds)])))
}

const script = ['vmhost/testing/cycles.ts']

async function runHere(rounds: number): Promise<Finished> {
  const commandLine = inOwnNetwork([process.execPath, ...script, '--rounds', rounds].join(' '))
  const child = spawn('sh', ['-c', commandLine], { cwd: CHECKOUT, stdio: ['ignore', 'pipe', 'inherit'] })
  let output = ''
  child.stdout.on('data', (chunk: Buffer) => {
    output += chunk.toString('utf8')
    process.stderr.write(chunk)
  })
  const status = await new Promise<number>((resolve) => child.once('close', (code) => resolve(code ?? 255)))
  return { status, output }
}

type Finished = { readonly status: number; readonly output: string }

/** What it said at its end. */
function counted({ status, output }: Finished): Soaked {
  const [, passed, failed] = /^(\d+) passed, (\d+) failed$/m.exec(output) ?? []
  if (passed === undefined || failed === undefined) throw new Error(`it did not come to its end: exit status ${status}`)
  return { passed: Number(passed), failed: Number(failed) }
}
