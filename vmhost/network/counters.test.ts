import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { macFor } from './address.ts'
import type { TransferReading } from './counters.ts'
import { createLab, type Lab, type Namespace, NetworkProcess, Probe, plugIn } from './testing/lab.ts'
import type { MachineNetwork, NetworkSettings } from './types.ts'

vi.setConfig({ testTimeout: 90_000, hookTimeout: 90_000 })

const one: MachineNetwork = { machineId: 1, address: '10.42.0.5', uid: 2_000_001 }
const settings: NetworkSettings = {
  network: '10.42.0.0/16',
  allow: [],
  publicPorts: [{ protocol: 'tcp', port: 2222 }],
}

let lab: Lab
let network: NetworkProcess
let guest: Namespace
let inside: Probe, host: Probe, internet: Probe

beforeEach(async () => {
  lab = await createLab()
  network = new NetworkProcess(lab.host, settings)
  await network.call({ do: 'prepareHost' })
  await network.call({ do: 'ensureMachine', machine: one })
  guest = await lab.add('guest')
  // Counts for itself, from before there is anything to count; ARP and IPv6 go past it.
  await guest.run(`nft -f - <<'END'
    table inet own {
      counter out_direct {}
      counter out_gateway {}
      counter out_metadata {}
      counter in_direct {}
      counter in_gateway {}
      chain out {
        type filter hook postrouting priority 300
        oifname != "eth0" accept
        ip daddr 169.254.169.254 counter name out_metadata accept
        ip daddr { 10.42.0.1, 203.0.113.2 } counter name out_gateway accept
        ip version 4 counter name out_direct
      }
      chain in {
        type filter hook prerouting priority -300
        iifname != "eth0" accept
        ip saddr 169.254.169.254 accept
        ip saddr { 10.42.0.1, 203.0.113.2 } counter name in_gateway accept
        ip version 4 counter name in_direct
      }
    }
END`)
  await plugIn(one, lab.host, guest, macFor(one.address))
  // These cards cut what is too long themselves, behind where the guest's rules count it as one packet.
  await guest.run('ip link set eth0 gso_max_segs 1')
  await lab.internet.run('ip link set eth0 gso_max_segs 1')
  inside = new Probe(guest)
  host = new Probe(lab.host)
  internet = new Probe(lab.internet)
  await internet.listen('tcp', 8000)
  await internet.listen('udp', 9)
  await inside.listen('tcp', 8000)
  await host.listen('tcp', 2222)
})

afterEach(async () => {
  await lab[Symbol.asyncDispose]()
})

/** What the guest's card has sent, without the Ethernet headers. */
async function sentByCard(): Promise<number> {
  const [bytes, packets] = (await guest.run('cd /sys/class/net/eth0/statistics; cat tx_bytes tx_packets')).split('\n')
  return Number(bytes) - 14 * Number(packets)
}

async function ownCount(name: string, namespace = guest): Promise<number> {
  return Number(/bytes (\d+)/.exec(await namespace.run(`nft list counter inet own ${name}`))?.[1])
}

/** All that was counted of the machine, in one series or several. */
async function counted(part: 'directOut' | 'directIn' | 'gatewayOut' | 'gatewayIn'): Promise<number> {
  const gone = network.kept.filter(({ series }) => series !== undefined)
  return [...gone, ...(await network.readTransfer())].reduce((sum, reading) => sum + (reading[part]?.bytes ?? 0), 0)
}

/** Waits until what the card has sent is what was counted, and nothing is on its way any more. */
async function everythingCounted(): Promise<void> {
  const difference = async () => (await counted('directOut')) + (await counted('gatewayOut')) - (await sentByCard())
  await expect.poll(difference, { timeout: 60_000 }).toBe(0)
}

async function series(): Promise<string[]> {
  return (await network.readTransfer()).map((reading) => reading.series)
}

/** Every kind of traffic that a machine can have. */
async function talk(): Promise<void> {
  expect(await inside.tcp('198.51.100.10', 8000)).toBe('connected')
  expect(await inside.tcp('10.42.0.1', 2222)).toBe('connected')
  expect(await inside.tcp('203.0.113.2', 2222)).toBe('connected')
  expect(await host.tcp(one.address, 8000)).toBe('connected')
  await inside.ask({ do: 'hold', address: '198.51.100.10', port: 8000 })
  // Larger than a packet: a card without offloads, and one with, must come to the same.
  const text = 'x'.repeat(200_000)
  expect(await inside.ask({ do: 'echo', text })).toEqual({ text })
  await inside.ask({ do: 'udp', address: '198.51.100.10', port: 9, count: 50 })
  // What is refused has left the machine all the same.
  expect(await inside.tcp('192.168.7.1', 8000)).toBe('EHOSTUNREACH')
  await inside.ask({ do: 'udp', address: '10.42.0.1', port: 5432 })
  // Neither IPv4 nor IPv6: nobody knows what to do with it.
  await inside.ask({ do: 'frame', hex: `02be0a2a000102be0a2a000588b5${'00'.repeat(50)}` })
}

test('what leaves is counted to the byte as its own card counts it, in two classes, metadata left out', async () => {
  await network.call({ do: 'startMetadata' })
  await talk()
  await inside.ask({ do: 'tcp', address: '169.254.169.254', port: 80, silent: true })
  const total = async () =>
    (await counted('directOut')) + (await counted('gatewayOut')) + (await ownCount('out_metadata'))
  await expect.poll(async () => (await total()) - (await sentByCard())).toBe(0)
  expect(await ownCount('out_metadata')).toBeGreaterThan(0)
  expect(await counted('gatewayOut')).toBe(await ownCount('out_gateway'))
  // ARP and the strange frame are nobody's class in the guest.
  const beside = (await sentByCard()) - (await ownCount('out_metadata')) - (await ownCount('out_gateway'))
  expect(await counted('directOut')).toBe(beside)
  expect(beside - (await ownCount('out_direct'))).toBeGreaterThanOrEqual(50)
  expect(beside - (await ownCount('out_direct'))).toBeLessThan(5_000)
})

test('what a hypervisor announces by itself when its guest goes on is not the guest’s', async () => {
  await talk()
  await everythingCounted()
  await inside.ask({ do: 'frame', hex: `ffffffffffff02be0a2a00058035${'00'.repeat(46)}` })
  await inside.ask({ do: 'udp', address: '198.51.100.10', port: 9, count: 5 })
  const missing = async () => (await sentByCard()) - (await counted('directOut')) - (await counted('gatewayOut'))
  await expect.poll(missing).toBe(46)
})

test('what arrives is counted in the same classes', async () => {
  await talk()
  await expect.poll(async () => (await counted('directIn')) - (await ownCount('in_direct'))).toBe(0)
  await expect.poll(async () => (await counted('gatewayIn')) - (await ownCount('in_gateway'))).toBe(0)
})

test('the other side counts as many bytes as left for it', async () => {
  await lab.internet.run(`nft -f - <<'END'
    table inet own {
      counter from_machine {}
      chain in { type filter hook prerouting priority -300; ip saddr 203.0.113.2 counter name from_machine; }
    }
END`)
  const before = await ownCount('out_direct')
  await inside.ask({ do: 'hold', address: '198.51.100.10', port: 8000 })
  const text = 'x'.repeat(300_000)
  expect(await inside.ask({ do: 'echo', text })).toEqual({ text })
  await expect
    .poll(async () => (await ownCount('out_direct')) - before - (await ownCount('from_machine', lab.internet)))
    .toBe(0)
  expect(await ownCount('from_machine', lab.internet)).toBeGreaterThan(300_000)
})

/** What the kernel calls the chain that counts at the tap: one that is made anew has another number. */
async function chainHandle(): Promise<string | undefined> {
  return /chain vm1 \{ # handle (\d+)/.exec(await lab.host.run('nft -a list chain netdev berth vm1'))?.[1]
}

test('updates of the rules miss no packet and count none twice', async () => {
  let goesOn = true
  const traffic = async () => {
    while (goesOn) await inside.ask({ do: 'udp', address: '198.51.100.10', port: 9, count: 500 })
  }
  const sending = traffic()
  const before = { series: await series(), chain: await chainHandle() }
  for (let round = 0; round < 15; round++) expect((await network.reconcile([one])).failed).toEqual([])
  await network.kill()
  network = new NetworkProcess(lab.host, settings)
  await network.call({ do: 'prepareHost' })
  expect((await network.reconcile([one])).failed).toEqual([])
  goesOn = false
  await sending
  await everythingCounted()
  // Beside a chain that takes its place one counts on for an instant, which few packets meet.
  expect(before.chain).toBeDefined()
  expect({ series: await series(), chain: await chainHandle() }).toEqual(before)
  expect(network.kept).toEqual([])
})

test('a chain that cannot be kept is replaced', async () => {
  await lab.host.run(`nft -f - <<'END'
    delete chain netdev berth vm1
    add chain netdev berth vm1 { type filter hook ingress device "vm1" priority -400; policy accept; }
END`)
  const gatewayOut = await counted('gatewayOut')
  expect((await network.reconcile([one])).failed).toEqual([])
  await inside.ask({ do: 'udp', address: '10.42.0.1', port: 9, count: 7 })
  await expect.poll(() => counted('gatewayOut')).toBe(gatewayOut + 7 * 29)
  expect(await lab.host.run('nft list chain netdev berth vm1')).toContain('priority -500')
})

test('the next process goes on with the same counters', async () => {
  await talk()
  const before = await series()
  await network.kill()
  await inside.ask({ do: 'udp', address: '198.51.100.10', port: 9, count: 5 })
  network = new NetworkProcess(lab.host, settings)
  await network.call({ do: 'prepareHost' })
  await network.reconcile([one])
  expect(await series()).toEqual(before)
  await everythingCounted()
})

test('what counters read last is handed on before they are removed, by the next process if need be', async () => {
  await talk()
  await everythingCounted()
  const [last] = await network.readTransfer()
  await network.call({ do: 'refuseToKeep' })
  await network.call({ do: 'removeMachine', machineId: 1 })
  await network.hears(/not kept yet/)
  expect(await network.readTransfer()).toEqual([last])
  await network.kill()
  network = new NetworkProcess(lab.host, settings)
  await network.call({ do: 'prepareHost' })
  await network.reconcile([])
  expect(network.kept).toEqual([last])
  expect(await network.readTransfer()).toEqual([])
  expect(await lab.host.run('nft list table netdev berth')).not.toContain('vm1')
  // Another life of the machine begins another series.
  await network.call({ do: 'ensureMachine', machine: one })
  const [next] = await network.readTransfer()
  expect(next?.series).not.toBe(last?.series)
  expect(next).toMatchObject({ machineId: 1, directOut: { bytes: 0, packets: 0 } })
})

const nothing = { bytes: 0, packets: 0 }

test.each([
  ['the whole firewall', 'nft flush ruleset'],
  ['the table that counts what leaves', 'nft delete table netdev berth'],
  ['the table of the rules', 'nft delete table inet berth'],
])('a counter is never made anew under its old name: somebody removes %s', async (_, command) => {
  await talk()
  const [before] = await network.readTransfer()
  const reading = async (): Promise<TransferReading | undefined> =>
    (await network.readTransfer()).find(({ series }) => series !== before?.series)
  await lab.host.run(command)
  await network.hears(/put back/)
  await expect.poll(async () => (await reading())?.series).toBeDefined()
  // It counts again, from nothing, and the old name reads no less than it did, or is gone.
  const fresh = await reading()
  expect(fresh?.gatewayOut).toEqual(nothing)
  await inside.ask({ do: 'udp', address: '10.42.0.1', port: 9, count: 7 })
  await expect.poll(async () => (await reading())?.gatewayOut).toEqual({ bytes: 7 * 29, packets: 7 })
  for (const { series, gatewayOut, directIn } of [...network.kept, ...(await network.readTransfer())])
    if (series === before?.series) {
      expect(gatewayOut ?? before.gatewayOut).toEqual(before.gatewayOut)
      expect(directIn ?? before.directIn).toEqual(before.directIn)
    }
  expect(await network.reconcile([one])).toEqual({ ensured: [], removed: [], failed: [] })
  expect(await series()).toEqual([fresh?.series])
})

test('a machine that cannot be connected leaves no counters behind', async () => {
  await lab.host.run('ip link add vm2 type veth peer name other')
  await expect(
    network.call({ do: 'ensureMachine', machine: { machineId: 2, address: '10.42.0.6', uid: 2_000_002 } }),
  ).rejects.toThrow(/could not be connected/)
  await network.reconcile([one])
  expect((await network.readTransfer()).map(({ machineId }) => machineId)).toEqual([1])
})
