import { expect, test } from 'vitest'
import { ledger } from './doctor.ts'
import { createLab, type Lab, NetworkProcess } from './network/testing/lab.ts'

/** The finding as a doctor in the lab's host sees it. */
async function forwarding(lab: Lab): Promise<{ ok: boolean; message: string; remedy?: string }> {
  const from = (path: string) => JSON.stringify(new URL(path, import.meta.url).href)
  const program = `import { forwarding } from ${from('./doctor.ts')}
    import { readKernel } from ${from('./network/kernel.ts')}
    console.log(JSON.stringify(await forwarding([], await readKernel())))`
  return JSON.parse(await lab.host.run(`${process.execPath} --input-type=module -e '${program}'`))
}

test('forwarding is looked at where Berth switches it on: ip_forward may be off, and a way out that is closed is named', async () => {
  await using lab = await createLab()
  await lab.host.run('sysctl -qw net.ipv4.ip_forward=0')
  const network = new NetworkProcess(lab.host, { network: '10.42.0.0/16', allow: [], publicPorts: [] })
  await network.call({ do: 'prepareHost' })
  expect(await lab.host.run('sysctl -n net.ipv4.ip_forward')).toBe('0\n')
  expect(await forwarding(lab)).toMatchObject({ ok: true, message: "Machines' packets are forwarded by eth0" })

  await lab.host.run('sysctl -qw net.ipv4.conf.eth0.forwarding=0')
  expect(await forwarding(lab)).toMatchObject({
    ok: false,
    message: 'eth0 does not forward packets: machines do not get out there',
    remedy: expect.stringContaining('sysctl -w net.ipv4.conf.eth0.forwarding=1'),
  })

  await lab.host.run('ip route delete default')
  expect(await forwarding(lab)).toMatchObject({ ok: false, message: expect.stringContaining('no default route') })
})

test('what keeps facts from the ledger is said, with what to do', () => {
  const away = { since: new Date('2026-03-31T12:00:00Z'), why: 'column "cpus" does not exist' }
  expect(ledger({ away: undefined, aside: undefined })).toMatchObject({ ok: true })
  expect(ledger({ away, aside: undefined })).toMatchObject({
    ok: false,
    message: expect.stringContaining('since 2026-03-31T12:00:00.000Z: column "cpus" does not exist'),
    remedy: expect.stringContaining('upgrade'),
  })
  expect(ledger({ away: undefined, aside: '/data/vmhost/ledger.json.refused' })).toMatchObject({
    ok: false,
    message: expect.stringContaining('/data/vmhost/ledger.json.refused'),
    remedy: expect.stringContaining('move the file'),
  })
})
