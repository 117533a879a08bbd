import { chmod, copyFile, mkdir, rename } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { testArtifacts } from '../../../test/e2e/artifacts.ts'
import { type CloudHypervisorProof, proveCloudHypervisor } from '../cloud-hypervisor-probe.ts'
import { CloudHypervisorPrograms } from '../cloud-hypervisor-programs.ts'
import { programVersion } from '../cloud-hypervisor-version.ts'

/** The program that is to be tried, if any. */
export const named = process.env.CLOUD_HYPERVISOR

/**
 * Whether guests run under Cloud Hypervisor here, found out as a vmhost does it, once a boot of the server.
 * @returns undefined when there is no program to be tried
 */
export async function proof(): Promise<CloudHypervisorProof | undefined> {
  if (named === undefined) return undefined
  // Where every user may walk to, which a checkout need not be.
  const place = join(tmpdir(), 'berth-test-cloud-hypervisor')
  await mkdir(place, { recursive: true })
  await chmod(place, 0o711)
  const kernel = join(place, 'vmlinuz')
  // Files of tests run at the same time: each replaces it whole.
  await copyFile(join(await testArtifacts(), 'boot', 'current', 'vmlinuz'), `${kernel}.${process.pid}`)
  await rename(`${kernel}.${process.pid}`, kernel)
  const binary = await new CloudHypervisorPrograms(join(place, 'hypervisors')).keep(named, await programVersion(named))
  return proveCloudHypervisor({
    binary,
    kernel,
    directory: join(place, 'probe', String(process.pid)),
    cachePath: join(place, 'proof.json'),
    limitMs: Number(process.env.BERTH_TEST_KVM_LIMIT_MS ?? 20_000),
  })
}
