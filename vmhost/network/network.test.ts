import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { openDevices } from '../hypervisor/privileges.ts'
import { macFor } from './address.ts'
import { createLab, type Lab, NetworkProcess, Probe, plugIn } from './testing/lab.ts'
import type { MachineNetwork, NetworkSettings } from './types.ts'

// Namespaces and guests are slow to come on a machine that runs every other test at the same time.
vi.setConfig({ testTimeout: 90_000, hookTimeout: 90_000 })

const settings: NetworkSettings = {
  network: '10.42.0.0/16',
  allow: [],
  publicPorts: [{ protocol: 'tcp', port: 2222 }],
}

let lab: Lab
let network: NetworkProcess

beforeEach(async () => {
  lab = await createLab()
  network = new NetworkProcess(lab.host, settings)
})

afterEach(async () => {
  await lab[Symbol.asyncDispose]()
})

function machine(machineId: number): MachineNetwork {
  return { machineId, address: `10.42.${machineId >> 8}.${(machineId & 255) + 10}`, uid: 2_000_000 + machineId }
}

function machines(count: number): MachineNetwork[] {
  return Array.from({ length: count }, (_, index) => machine(index + 1))
}

/** Everything of ours that the kernel has, in words that differ when it does. */
async function kernelState(): Promise<string> {
  const links = await lab.host.run("ip -br -d link show group 48711 | cut -d' ' -f1 | sort")
  const routes = await lab.host.run('ip route show proto 190 | sort')
  const neighbours = await lab.host.run('ip neigh show nud permanent | sort')
  const sets = await lab.host.run('nft list set inet berth machines; nft list set arp berth machines')
  const elements = sets.match(/"vm[0-9]+" \. [0-9.]+/g)?.sort() ?? []
  const addresses = await lab.host.run("ip -br addr show to 10.42.0.0/16 | awk '{print $1, $3, $4}' | sort")
  const strays = await lab.host.run("ls /sys/class/net | grep -E '^vm' | sort || true")
  return [links, routes.replaceAll(' linkdown', ''), neighbours, elements.join('\n'), addresses, strays].join('\n')
}

async function connectAll(wanted: readonly MachineNetwork[]): Promise<unknown[]> {
  return await Promise.all(wanted.map((one) => network.call({ do: 'ensureMachine', machine: one })))
}

test('twenty machines at once are connected within seconds, each to its own tap', async () => {
  await network.call({ do: 'prepareHost' })
  const started = performance.now()
  const attachments = await connectAll(machines(20))
  expect(performance.now() - started).toBeLessThan(10_000)
  expect(attachments).toEqual(
    machines(20).map(({ machineId, address }) => ({ tap: `vm${machineId}`, mac: macFor(address) })),
  )
  expect(await network.reconcile(machines(20))).toEqual({ ensured: [], removed: [], failed: [] })
  expect(await lab.host.run('ip -d link show vm20')).toMatch(/tun type tap pi off vnet_hdr on persist on user 2000020/)
})

test("a tap opens for its machine's user and for nobody else's", async () => {
  await network.call({ do: 'prepareHost' })
  await connectAll([machine(1)])
  const guest = await lab.add('guest')
  const { address, machineId } = machine(1)
  await expect(plugIn({ machineId, address, uid: 2_000_002 }, lab.host, guest, macFor(address))).rejects.toThrow(
    'refused: Operation not permitted',
  )
  await plugIn(machine(1), lab.host, guest, macFor(address))
})

test("a real QEMU opens the tap as the machine's user, and its guest gets nothing through before it has an address", async () => {
  openDevices()
  await network.call({ do: 'prepareHost' })
  await connectAll([machine(1)])
  // The card's own boot ROM (iPXE) is a guest that needs nothing: it asks for an address from 0.0.0.0.
  lab.host.spawn(
    [
      ...['setpriv', '--reuid=2000001', '--regid=2000001', '--clear-groups', '--bounding-set=-all', '--'],
      ...['qemu-system-x86_64', '-M', 'q35', '-accel', 'tcg,tb-size=32', '-m', '64', '-nodefaults', '-display', 'none'],
      ...['-boot', 'n', '-netdev', 'tap,id=net,ifname=vm1,script=no,downscript=no'],
      ...['-device', `virtio-net-pci,netdev=net,mac=${macFor(machine(1).address)}`],
    ],
    ['inherit', 'inherit', 'inherit'],
  )
  const counter = (): Promise<string> => lab.host.run('nft list counter inet berth refused_spoofed')
  await expect.poll(counter, { timeout: 60_000, interval: 200 }).toMatch(/packets [1-9]/)
  expect(await lab.host.run('cat /sys/class/net/vm1/carrier')).toBe('1\n')
  expect(await lab.host.run('ip route show 10.42.0.11')).not.toContain('linkdown')
})

test('changes of one machine are carried out in the order they were asked for', async () => {
  await network.call({ do: 'prepareHost' })
  const wanted = machine(1)
  const calls = Array.from({ length: 9 }, (_, index) =>
    index % 2 === 0
      ? network.call({ do: 'ensureMachine', machine: wanted })
      : network.call({ do: 'removeMachine', machineId: 1 }),
  )
  // The last one connects; this reconcile disconnects, and what is asked for after it is newer than its list.
  calls.push(network.reconcile([]), network.call({ do: 'ensureMachine', machine: machine(2) }))
  await Promise.all(calls)
  expect(await lab.host.run('ls /sys/class/net')).toMatch(/^vm2$/m)
  expect(await lab.host.run('ls /sys/class/net')).not.toMatch(/^vm1$/m)
})

test('removing takes everything of a machine away, and removing it again is nothing', async () => {
  await network.call({ do: 'prepareHost' })
  const empty = await kernelState()
  await connectAll([machine(1)])
  expect(await kernelState()).not.toBe(empty)
  await network.call({ do: 'removeMachine', machineId: 1 })
  await network.call({ do: 'removeMachine', machineId: 1 })
  expect(await kernelState()).toBe(empty)
})

test('a tap of nobody leads nowhere, stays as long as it is wanted, and goes with the vmhost that wanted it', async () => {
  await network.call({ do: 'prepareHost' })
  const empty = await kernelState()
  const bare = { machineId: 2_000_000_000, uid: 2_002_000_000 }
  expect(await network.call({ do: 'ensureBareTap', ...bare })).toEqual({ tap: 'vm2000000000' })
  expect(await network.reconcile([])).toMatchObject({ removed: [], failed: [] })
  // Its link, and nothing that would let anything in or out: the rules let through what they know the address of.
  expect((await kernelState()).match(/vm2000000000/g)).toHaveLength(2)
  expect(await lab.host.run('ip -o address show dev vm2000000000')).toBe('')
  await network.call({ do: 'removeMachine', machineId: bare.machineId })
  expect(await kernelState()).toBe(empty)
  await network.call({ do: 'ensureBareTap', ...bare })
  await network.kill()
  network = new NetworkProcess(lab.host, settings)
  await network.call({ do: 'prepareHost' })
  expect((await network.reconcile([])).removed).toEqual(['vm2000000000'])
  expect(await kernelState()).toBe(empty)
})

test('whatever was bent is put right, and what is right is left alone', async () => {
  await network.call({ do: 'prepareHost' })
  await connectAll(machines(6))
  const right = await kernelState()
  const index = await lab.host.run('cat /sys/class/net/vm1/ifindex')
  await lab.host.run(
    [
      'ip link set vm1 down',
      'ip route add 10.42.7.7/32 dev vm2',
      'ip addr add 192.168.99.1/24 dev vm2',
      'ip neigh replace 10.42.0.13 lladdr 02:00:00:00:00:01 dev vm3 nud permanent',
      'ip neigh add 10.42.7.7 lladdr 02:00:00:00:00:01 dev vm3 nud permanent',
      'ip link delete vm4',
      'ip addr delete 10.42.0.1/32 dev vm5',
      'sysctl -qw net.ipv4.conf.vm6.rp_filter=0 net.ipv4.conf.eth0.forwarding=0',
      'ip route delete unreachable 10.42.0.0/16',
      'ip addr delete 10.42.0.1/32 dev lo',
      'nft flush chain inet berth from_machine',
      'nft delete element inet berth machines \'{ "vm1" . 10.42.0.11 }\'',
      'nft delete table arp berth',
    ].join(';'),
  )
  const result = await network.reconcile(machines(6))
  expect(result.failed).toEqual([])
  expect([...result.ensured].sort()).toEqual(['vm1', 'vm2', 'vm3', 'vm4', 'vm5', 'vm6'])
  expect(await kernelState()).toBe(right)
  expect(await lab.host.run('cat /sys/class/net/vm1/ifindex')).toBe(index)
  expect(await lab.host.run('sysctl -n net.ipv4.conf.vm6.rp_filter net.ipv4.conf.eth0.forwarding')).toBe('1\n1\n')
  expect(await lab.host.run('nft list chain inet berth from_machine')).toContain('no private network')
  expect((await network.reconcile(machines(6))).ensured).toEqual([])
})

test('strays go when they are ours, and only then', async () => {
  await network.call({ do: 'prepareHost' })
  await connectAll([machine(1)])
  await lab.host.run(
    [
      'ip tuntap add dev vm7 mode tap user 2000007 vnet_hdr; ip link set vm7 group 48711 up',
      // Its making was interrupted before it had its group.
      'ip tuntap add dev vm8 mode tap user 2000008 vnet_hdr',
      'ip tuntap add dev vm9 mode tap user 1000',
      'ip tuntap add dev vm10 mode tap; ip link set vm10 up',
      'ip link add vmbr0 type bridge',
      'ip link add vm11 type veth peer name other',
    ].join(';'),
  )
  const { removed } = await network.reconcile([machine(1)])
  expect([...removed].sort()).toEqual(['vm7', 'vm8'])
  expect(await lab.host.run("ls /sys/class/net | grep vm | sort | tr '\\n' ' '")).toBe('vm1 vm10 vm11 vm9 vmbr0 ')
  await expect(network.call({ do: 'ensureMachine', machine: machine(11) })).rejects.toThrow(
    /interface vm11 .* Berth did not make/,
  )
  const { failed } = await network.reconcile([machine(1), machine(9), machine(2)])
  expect(failed.map(({ machineId }) => machineId)).toEqual([9])
  expect(await lab.host.run('ip route show 10.42.0.12')).toContain('vm2')
})

test('one machine that cannot be connected does not hold up the others', async () => {
  await network.call({ do: 'prepareHost' })
  await lab.host.run('ip link add vm3 type veth peer name other')
  const results = await Promise.allSettled(
    machines(5).map((one) => network.call({ do: 'ensureMachine', machine: one })),
  )
  expect(results.map(({ status }) => status)).toEqual(['fulfilled', 'fulfilled', 'rejected', 'fulfilled', 'fulfilled'])
  await expect(
    network.call({ do: 'ensureMachine', machine: { ...machine(6), address: machine(1).address } }),
  ).rejects.toThrow('10.42.0.11 is the address of machine 1')
  for (const address of ['10.42.0.0', '10.42.0.1', '10.42.255.255', '10.43.0.5', '203.0.113.9', 'x']) {
    await expect(network.call({ do: 'ensureMachine', machine: { ...machine(6), address } }), address).rejects.toThrow(
      address,
    )
  }
})

test('killed at any moment, it leaves nothing that its successor does not put right', { timeout: 90_000 }, async () => {
  for (const killAfter of [0, 1, 3, 5, 8]) {
    await network.call({ do: 'prepareHost' })
    let answered = 0
    const calls = machines(12).map((one) => network.call({ do: 'ensureMachine', machine: one }).then(() => answered++))
    const settled = Promise.allSettled(calls)
    // By what the kernel shows, not by time: each round another moment of the work.
    for (let seen = -1; seen < killAfter && answered < 12; )
      seen = Number(await lab.host.run("ls /sys/class/net | grep -c '^vm' || true"))
    await network.kill()
    await settled
    // Neither a monitor nor a half-done command goes on without it.
    await expect.poll(() => lab.host.processes()).toEqual([])
    network = new NetworkProcess(lab.host, settings)
    await network.call({ do: 'prepareHost' })
    expect((await network.reconcile(machines(12))).failed).toEqual([])
    expect((await network.reconcile(machines(12))).ensured).toEqual([])
    expect((await network.reconcile([])).removed).toHaveLength(12)
    expect(await lab.host.run("ls /sys/class/net | grep '^vm' || true")).toBe('')
  }
})

test('connections of machines survive a vmhost that is killed and started again', async () => {
  await network.call({ do: 'prepareHost' })
  await connectAll([machine(1)])
  const guest = await lab.add('guest')
  await plugIn(machine(1), lab.host, guest, macFor(machine(1).address))
  const [inside, internet] = [new Probe(guest), new Probe(lab.internet)]
  await internet.listen('tcp', 8000)
  await inside.ask({ do: 'hold', address: '198.51.100.10', port: 8000 })
  await network.kill()
  expect(await inside.ask({ do: 'echo', text: 'alone' })).toEqual({ text: 'alone' })
  network = new NetworkProcess(lab.host, settings)
  await network.call({ do: 'prepareHost' })
  expect(await inside.ask({ do: 'echo', text: 'before reconcile' })).toEqual({ text: 'before reconcile' })
  expect(await network.reconcile([machine(1)])).toEqual({ ensured: [], removed: [], failed: [] })
  await network.call({ do: 'close' })
  expect(await inside.ask({ do: 'echo', text: 'closed' })).toEqual({ text: 'closed' })
})

test('a machine hears nothing of connections that its address had under another machine, nor do they count as its own', async () => {
  network = new NetworkProcess(lab.host, { ...settings, flowsPerMachine: 3 })
  await network.call({ do: 'prepareHost' })
  const address = machine(1).address
  const internet = new Probe(lab.internet)
  await internet.listen('udp', 9)
  await internet.listen('tcp', 8000)
  const beginAs = async (machineId: number): Promise<Probe> => {
    const one = { ...machine(machineId), address }
    await connectAll([one])
    const guest = await lab.add(`guest${machineId}`)
    await plugIn(one, lab.host, guest, macFor(address))
    const inside = new Probe(guest)
    await inside.listen('udp', 5000)
    return inside
  }
  const answer = { do: 'udp', address: '203.0.113.2', port: 5000, source: '198.51.100.10', sourcePort: 9 }
  const former = await beginAs(1)
  for (const port of [9, 10, 11]) await former.ask({ do: 'udp', address: '198.51.100.10', port, sourcePort: 5000 })
  expect(await internet.ask({ do: 'wait', port: 9 })).toEqual({ arrived: true })
  await internet.ask(answer)
  expect(await former.ask({ do: 'wait', port: 5000, source: '198.51.100.10' })).toEqual({ arrived: true })
  await network.call({ do: 'removeMachine', machineId: 1 })

  const later = await beginAs(2)
  await internet.ask(answer)
  // What the host sends after it, the same way, has arrived after it.
  await new Probe(lab.host).ask({ do: 'udp', address, port: 5000 })
  expect(await later.ask({ do: 'wait', port: 5000, source: '10.42.0.1' })).toEqual({ arrived: true })
  expect(await later.seen(5000)).toEqual(['10.42.0.1'])
  expect(await later.tcp('198.51.100.10', 8000)).toBe('connected')
})

test('a machine that wakes goes on with the connections that it had', async () => {
  await network.call({ do: 'prepareHost' })
  const one = machine(1)
  await connectAll([one])
  const internet = new Probe(lab.internet)
  await internet.listen('udp', 9)
  const wake = async (id: string): Promise<Probe> => {
    const guest = await lab.add(id)
    await plugIn(one, lab.host, guest, macFor(one.address))
    const inside = new Probe(guest)
    await inside.listen('udp', 5000)
    return inside
  }
  const answer = { do: 'udp', address: '203.0.113.2', port: 5000, source: '198.51.100.10', sourcePort: 9 }
  const before = await wake('guest1')
  await before.ask({ do: 'udp', address: '198.51.100.10', port: 9, sourcePort: 5000 })
  expect(await internet.ask({ do: 'wait', port: 9 })).toEqual({ arrived: true })
  await network.call({ do: 'removeMachine', machineId: 1 })
  await network.call({ do: 'ensureMachine', machine: { ...one, goesOn: true } })
  const after = await wake('guest2')
  await internet.ask(answer)
  expect(await after.ask({ do: 'wait', port: 5000, source: '198.51.100.10' })).toEqual({ arrived: true })
})

test('updates of the rules keep every reading, and a chain of an older version goes', async () => {
  await network.call({ do: 'prepareHost' })
  await connectAll([machine(1)])
  await lab.host.run(
    [
      "nft 'add counter inet berth vm1_direct { packets 7 bytes 4200 }'",
      "nft 'add rule inet berth to_machine counter name vm1_direct'",
      "nft 'add chain inet berth former { type filter hook output priority 0; policy drop; }'",
      'nft delete chain inet berth outwards',
      "nft 'add chain inet berth outwards { type nat hook postrouting priority 90; }'",
    ].join(';'),
  )
  await network.reconcile([machine(1)])
  await connectAll([machine(2)])
  expect(await lab.host.run('nft list counter inet berth vm1_direct')).toContain('packets 7 bytes 4200')
  const chains = await lab.host.run('nft list chains inet')
  expect(chains).not.toContain('former')
  expect(chains).toContain('hook postrouting priority srcnat;')
})

test('a firewall that somebody else flushes is back at once', async () => {
  await network.call({ do: 'prepareHost' })
  await connectAll(machines(2))
  const before = await kernelState()
  await lab.host.run('nft flush ruleset')
  await network.hears(/put back/)
  await expect
    .poll(() => lab.host.run('nft list chain inet berth from_machine 2>&1 || true'))
    .toContain('no private network')
  expect(await kernelState()).toBe(before)
})

test('a machine never gets through between two versions of the rules', async () => {
  await network.call({ do: 'prepareHost' })
  await connectAll([machine(1)])
  const guest = await lab.add('guest')
  await plugIn(machine(1), lab.host, guest, macFor(machine(1).address))
  const [inside, internet] = [new Probe(guest), new Probe(lab.internet)]
  await lab.internet.run('ip addr add 10.9.9.9/32 dev lo')
  await internet.listen('udp', 9)
  await internet.listen('tcp', 8000)
  let updates = 0
  let flooding = true
  const flood = inside.ask({ do: 'udp', address: '10.9.9.9', port: 9, count: 20_000 }).finally(() => {
    flooding = false
  })
  for (; flooding || updates < 5; updates++) await network.reconcile([machine(1)])
  await flood
  expect(await inside.tcp('198.51.100.10', 8000)).toBe('connected')
  expect(await internet.settled(9)).toEqual([])
  // Nor does it lose a packet: its address is never missing from the set.
  expect(await lab.host.run('nft list counter inet berth refused_spoofed')).toContain('packets 0')
  expect(updates).toBeGreaterThanOrEqual(5)
})

test('a network of the host in the way stops the start, with a free one to take instead', async () => {
  await lab.host.run('ip addr add 10.42.3.1/24 dev lan0; ip route add 10.43.0.0/16 via 203.0.113.1')
  await expect(network.call({ do: 'prepareHost' })).rejects.toThrow(
    /BERTH_NETWORK 10\.42\.0\.0\/16 overlaps 10\.42\.3\.[01](\/24|\/32)?, a network of this host \(lan0\); set BERTH_NETWORK=10\.44\.0\.0\/16, which is free here/,
  )
  expect(await lab.host.run('nft list tables')).toBe('')
  await lab.host.run(
    'ip addr delete 10.42.3.1/24 dev lan0; ip route add unreachable 10.0.0.0/8; ip route add 0.0.0.0/1 via 203.0.113.1',
  )
  await network.call({ do: 'prepareHost' })
  // Its own addresses and routes are in nobody's way: not at the next start either, nor with another network.
  await connectAll([machine(1)])
  await network.call({ do: 'prepareHost' })
  const moved = new NetworkProcess(lab.host, { ...settings, network: '10.99.0.0/16' })
  await moved.call({ do: 'prepareHost' })
  expect((await moved.reconcile([{ ...machine(1), address: '10.99.0.5' }])).ensured).toEqual(['vm1'])
  const state = await lab.host.run('ip addr; ip route')
  expect(state).toContain('10.99.0.1/32')
  expect(state).not.toContain('10.42.')
})

test('another firewall that would cut machines off is named', async () => {
  await lab.host.run(
    "nft 'add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }'",
  )
  await network.call({ do: 'prepareHost' })
  expect(network.said).toContainEqual(expect.stringMatching(/FORWARD \(table ip filter\) drops .* vm\* .* no internet/))
})

test('machines ask for their own name, and get another one the moment they are renamed', async () => {
  await network.call({ do: 'prepareHost' })
  await network.call({ do: 'startMetadata' })
  await connectAll(machines(2))
  const [guest1, guest2] = [await lab.add('guest1'), await lab.add('guest2')]
  await plugIn(machine(1), lab.host, guest1, macFor(machine(1).address))
  await plugIn(machine(2), lab.host, guest2, macFor(machine(2).address))
  const ask = async (guest: typeof guest1): Promise<unknown> =>
    JSON.parse(
      await guest.run(
        `${process.execPath} -e "fetch('http://169.254.169.254/').then(async (r) => console.log(await r.text()))"`,
      ),
    )
  await network.call({ do: 'rename', address: machine(1).address, name: 'demo' })
  await network.call({ do: 'rename', address: machine(2).address, name: 'other' })
  expect(await ask(guest1)).toEqual({ name: 'demo', source_ip: '10.42.0.11' })
  expect(await ask(guest2)).toEqual({ name: 'other', source_ip: '10.42.0.12' })
  await network.call({ do: 'rename', address: machine(1).address, name: 'renamed' })
  expect(await ask(guest1)).toEqual({ name: 'renamed', source_ip: '10.42.0.11' })
  // The host's own way to its cloud's metadata service is untouched.
  expect(await lab.host.run('ip route get 169.254.169.254')).toContain('via 203.0.113.1')
})
