import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest'
import { macFor } from './address.ts'
import { createLab, type Lab, type Namespace, NetworkProcess, Probe, plugIn } from './testing/lab.ts'
import type { MachineNetwork } from './types.ts'

vi.setConfig({ testTimeout: 90_000 })

const one: MachineNetwork = { machineId: 1, address: '10.42.0.5', uid: 2_000_001 }
const two: MachineNetwork = { machineId: 2, address: '10.42.0.6', uid: 2_000_002 }
const FLOWS = 100
const settings = {
  network: '10.42.0.0/16',
  allow: ['172.20.5.0/24'],
  publicPorts: [
    { protocol: 'tcp', port: 2222 },
    { protocol: 'tcp', port: 22, address: '203.0.113.2' },
    { protocol: 'udp', port: 53 },
    { protocol: 'tcp', port: 443, forMachinePorts: true },
  ],
  flowsPerMachine: FLOWS,
} as const
/** Addresses out there that a real internet has not, one of each network that machines must not reach. */
const PRIVATE = [
  '10.9.9.9',
  '100.64.0.9',
  '169.254.7.7',
  '172.16.9.9',
  '192.0.0.9',
  '192.88.99.9',
  '192.168.9.9',
  '198.18.0.9',
  '240.0.0.9',
]

let lab: Lab
let guest: Namespace, guest2: Namespace
let network: NetworkProcess
let host: Probe, internet: Probe, lan: Probe, first: Probe, second: Probe

beforeAll(async () => {
  lab = await createLab()
  network = new NetworkProcess(lab.host, settings)
  await network.call({ do: 'prepareHost' })
  await Promise.all([one, two].map((machine) => network.call({ do: 'ensureMachine', machine })))
  guest = await lab.add('guest1')
  guest2 = await lab.add('guest2')
  await plugIn(one, lab.host, guest, macFor(one.address))
  await plugIn(two, lab.host, guest2, macFor(two.address))
  await lab.internet.run(
    [...PRIVATE, '172.20.5.9'].map((address) => `ip addr add ${address}/32 dev lo`).join(';') +
      // The way back for what should never have left; its absence would hide a missing masquerade from nobody.
      '; ip route add 198.51.100.77 via 203.0.113.2',
  )
  // Refusals are told at most once a second to each machine; here every one is.
  await lab.host.run(
    'ip addr add 203.0.113.3/32 dev eth0; sysctl -qw net.ipv4.icmp_ratelimit=0 net.netfilter.nf_conntrack_udp_timeout=1',
  )
  host = new Probe(lab.host)
  internet = new Probe(lab.internet)
  lan = new Probe(lab.lan)
  first = new Probe(guest)
  second = new Probe(guest2)
  for (const port of [22, 443, 2222, 5432]) await host.listen('tcp', port)
  for (const port of [53, 67]) await host.listen('udp', port)
  for (const probe of [internet, lan, first, second]) {
    await probe.listen('tcp', 8000)
    await probe.listen('udp', 9)
  }
}, 60_000)

afterAll(async () => {
  await lab[Symbol.asyncDispose]()
})

/** Takes every rule away whose comment is one of these, in any table of ours. */
async function removeRules(comments: readonly string[]): Promise<void> {
  const { nftables } = JSON.parse(await lab.host.run('nft -j list ruleset')) as {
    nftables: { rule?: { family: string; chain: string; handle: number; comment?: string } }[]
  }
  const rules = nftables.flatMap(({ rule }) =>
    rule?.comment !== undefined && comments.includes(rule.comment) ? [rule] : [],
  )
  const missing = comments.filter((comment) => !rules.some((rule) => rule.comment === comment))
  if (missing.length > 0) throw new Error(`no rule ${missing.join(', ')}`)
  await lab.host.run(
    rules.map(({ family, chain, handle }) => `nft delete rule ${family} berth ${chain} handle ${handle}`).join(';'),
  )
}

/** Everything as it should be, whatever a test took away. */
async function repair(): Promise<void> {
  expect((await network.reconcile([one, two])).failed).toEqual([])
}

async function counter(name: string, family = 'inet'): Promise<number> {
  const list: { nftables: { counter?: { packets: number } }[] } = JSON.parse(
    await lab.host.run(`nft -j list counter ${family} berth refused_${name}`),
  )
  return list.nftables.flatMap((entry) => entry.counter?.packets ?? []).reduce((sum, packets) => sum + packets, 0)
}

/**
 * Shows that each of `layers` alone keeps `attempt` from succeeding, and that nothing else does: all others are taken
 * away, then all of them.
 * @param attempt true when it succeeded
 * @param weaken what else is in the way and no rule of ours: done once all rules are gone
 */
async function provesEach(
  layers: readonly string[],
  attempt: () => Promise<boolean>,
  weaken?: () => Promise<void>,
): Promise<void> {
  expect(await attempt(), 'with all rules').toBe(false)
  for (const layer of layers) {
    const others = layers.filter((other) => other !== layer)
    if (others.length > 0) await removeRules(others)
    expect(await attempt(), `with only "${layer}"`).toBe(false)
    await repair()
  }
  await removeRules(layers)
  await weaken?.()
  expect(await attempt(), 'without any').toBe(true)
  await repair()
  expect(await attempt(), 'put back').toBe(false)
}

/** Sends one datagram that must be dropped silently, then one that arrives: what was before it in line is decided. */
async function datagramArrives(
  target: { address: string; port: number; source?: string },
  receiver: Probe,
  from: string,
): Promise<boolean> {
  await receiver.seen(target.port)
  await internet.seen(9)
  await first.ask({ do: 'udp', ...target })
  await first.ask({ do: 'udp', address: '198.51.100.10', port: 9 })
  expect((await internet.ask({ do: 'wait', port: 9, source: '203.0.113.2' })).arrived).toBe(true)
  if (receiver === internet && target.port === 9)
    return (await internet.ask({ do: 'seen', port: 9 })).seen?.includes(from) === true
  return (await receiver.settled(target.port)).includes(from)
}

describe('a machine reaches', () => {
  test('the internet, by the address of the host', async () => {
    const answer = await first.ask({ do: 'tcp', address: '198.51.100.10', port: 8000 })
    expect(answer.result).toBe('connected')
    expect(JSON.parse(answer.text ?? '')).toMatchObject({ peer: '203.0.113.2' })
    expect(await first.ask({ do: 'ping', address: '198.51.100.10' })).toEqual({ result: 'reply' })
  })

  test("the gateway's public ports on every address of the host, the gateway address included", async () => {
    for (const address of ['10.42.0.1', '203.0.113.2', '203.0.113.3', '192.168.7.2']) {
      expect(await first.tcp(address, 2222), address).toBe('connected')
    }
    await host.seen(53)
    await first.ask({ do: 'udp', address: '10.42.0.1', port: 53 })
    expect((await host.ask({ do: 'wait', port: 53, source: one.address })).arrived).toBe(true)
  })

  test('the gateway address by ping, and no other address of the host', async () => {
    expect(await first.ask({ do: 'ping', address: '10.42.0.1' })).toEqual({ result: 'reply' })
    expect(await first.ask({ do: 'ping', address: '203.0.113.2' })).toEqual({ result: 'unreachable 13' })
  })

  test('a private network that the operator allows', async () => {
    expect(await first.tcp('172.20.5.9', 8000)).toBe('connected')
    await removeRules(['allowed by the operator'])
    expect(await first.tcp('172.20.5.9', 8000)).toBe('EHOSTUNREACH')
    await repair()
  })

  test('itself only through the host: a process of the host opens connections to it', async () => {
    expect(await host.tcp(one.address, 8000)).toBe('connected')
    expect(await first.seen(8000)).toEqual(['10.42.0.1'])
  })

  test('nothing any more once the rules do not know it, though its tap is up', async () => {
    await lab.host.run(`nft delete element inet berth machines '{ "vm1" . ${one.address} }'`)
    const before = await counter('spoofed')
    await internet.seen(9)
    await first.ask({ do: 'udp', address: '198.51.100.10', port: 9 })
    await expect.poll(() => counter('spoofed')).toBeGreaterThan(before)
    expect(await internet.settled(9)).toEqual([])
    await repair()
    expect(await first.tcp('198.51.100.10', 8000)).toBe('connected')
  })
})

describe('ports of machines', () => {
  const landed = async (probe: Probe, port: number) => {
    for (const own of [443, 5432]) await host.seen(own)
    const result = await probe.tcp('203.0.113.2', port)
    const at = []
    for (const own of [443, 5432]) if ((await host.seen(own)).length > 0) at.push(own)
    return [result, ...at]
  }

  test('from 3000 to 9999 lead to the HTTPS listener, for the world and for machines; the ports beside them do not', async () => {
    for (const port of [3000, 8000, 9999])
      expect(await landed(internet, port), String(port)).toEqual(['connected', 443])
    expect(await landed(first, 3000)).toEqual(['connected', 443])
    for (const port of [2999, 10_000]) expect(await landed(internet, port), String(port)).toEqual(['ECONNREFUSED'])
  })

  test('that a program of the host listens on stay its own', async () => {
    expect(await landed(internet, 5432)).toEqual(['connected', 5432])
    await removeRules(['in use on the host'])
    expect(await landed(internet, 5432)).toEqual(['connected', 443])
    await repair()
    expect(await landed(first, 5432)).toEqual(['EHOSTUNREACH'])
  })
})

describe('a machine does not reach', () => {
  test('another machine', async () => {
    const layers = ['no other machine', 'no address of machines', 'no private network', 'only by a default route']
    // An honest guest asks on its own link and gets no answer; a hostile one sends by the gateway.
    await guest.run(`ip route replace ${two.address} via 10.42.0.1`)
    await guest2.run(`ip route replace ${one.address} via 10.42.0.1`)
    await provesEach(layers, async () => (await first.tcp(two.address, 8000)) === 'connected')
    await guest.run(`ip route delete ${two.address}`)
  })

  test('an address of machines that nobody has', async () => {
    const before = await counter('machine')
    // The kernel has no route there and says so itself; it never gets as far as the rules.
    await guest.run('ip route replace 10.42.99.99 via 10.42.0.1')
    expect(await first.tcp('10.42.99.99', 8000)).toBe('EHOSTUNREACH')
    expect(await counter('machine')).toBe(before)
  })

  test('a service of the host, on any of its addresses', async () => {
    for (const address of ['10.42.0.1', '203.0.113.2', '192.168.7.2'])
      expect(await first.tcp(address, 5432)).toBe('EHOSTUNREACH')
    await provesEach(['no other service of the host'], async () => (await first.tcp('10.42.0.1', 5432)) === 'connected')
  })

  test("the host's own sshd where the gateway has that port on another address", async () => {
    expect(await first.tcp('203.0.113.2', 22)).toBe('connected')
    await provesEach(['no other service of the host'], async () => (await first.tcp('203.0.113.3', 22)) === 'connected')
  })

  test.each(PRIVATE)('%s', async (address) => {
    await provesEach(['no private network'], async () => (await first.tcp(address, 8000)) === 'connected')
  })

  test('public addresses behind an interface without a default route, such as a tunnel', async () => {
    await lab.lan.run('ip addr add 198.51.100.200/32 dev lo')
    await lab.host.run('ip route add 198.51.100.200 via 192.168.7.1; sysctl -qw net.ipv4.conf.lan0.forwarding=1')
    await provesEach(['only by a default route'], async () => (await first.tcp('198.51.100.200', 8000)) === 'connected')
    await lab.host.run('ip route delete 198.51.100.200; sysctl -qw net.ipv4.conf.lan0.forwarding=0')
  })

  test('the metadata port by its own name', async () => {
    await network.call({ do: 'startMetadata' })
    await provesEach(['no other service of the host'], async () => {
      const { result } = await first.ask({ do: 'tcp', address: '10.42.0.1', port: 16_925, silent: true })
      return result === 'connected'
    })
  })
})

describe('a hostile machine', () => {
  test.each(['10.42.0.6', '198.51.100.77', '203.0.113.9'])('cannot send from %s', async (source) => {
    await guest.run(`ip addr add ${source}/32 dev eth0`)
    const before = await counter('spoofed')
    // Without masquerade in the way of showing it: a spoofed machine's address leaves as the host's.
    const seenAs = source === '10.42.0.6' ? '10.42.0.6' : source
    const attempt = async (): Promise<boolean> =>
      source === '10.42.0.6'
        ? await datagramArrives({ address: '10.42.0.1', port: 53, source }, host, seenAs)
        : await datagramArrives({ address: '198.51.100.10', port: 9, source }, internet, seenAs)
    const kernelCheck = (value: number) => lab.host.run(`sysctl -qw net.ipv4.conf.vm1.rp_filter=${value}`)
    await kernelCheck(0)
    await provesEach(['only its own address', 'only addresses routed to this tap'], attempt, async () => {
      await kernelCheck(1)
      expect(await attempt(), "with the kernel's check alone").toBe(false)
      await kernelCheck(0)
    }).finally(() => guest.run(`ip addr delete ${source}/32 dev eth0`))
    expect(await counter('spoofed')).toBeGreaterThan(before)
  })

  test('cannot send from the gateway address to the host itself', async () => {
    await guest.run(
      'ip addr add 10.42.0.1/32 dev eth0; ip neigh replace 203.0.113.2 lladdr 02:be:0a:2a:00:01 dev eth0; ip route add 203.0.113.2 dev eth0',
    )
    expect(await datagramArrives({ address: '203.0.113.2', port: 53, source: '10.42.0.1' }, host, '10.42.0.1')).toBe(
      false,
    )
    await guest.run('ip addr delete 10.42.0.1/32 dev eth0; ip route delete 203.0.113.2')
  })

  test('cannot broadcast to the host', async () => {
    await provesEach(['nobody to broadcast to', 'no other service of the host'], () =>
      datagramArrives({ address: '255.255.255.255', port: 67 }, host, one.address),
    )
  })

  test('cannot speak IPv6 to the host', async () => {
    const linkLocal = 'fe80::77'
    await host.listen('udp', 5353, '::')
    await guest.run('ip -6 addr replace fe80::5/64 dev eth0 nodad')
    const attempt = async (): Promise<boolean> => {
      await host.seen(5353)
      await guest.run(`ip -6 neigh replace ${linkLocal} lladdr 02:be:0a:2a:00:01 dev eth0`)
      await first.ask({ do: 'udp', address: linkLocal, port: 5353 })
      await internet.seen(9)
      await first.ask({ do: 'udp', address: '198.51.100.10', port: 9 })
      expect((await internet.ask({ do: 'wait', port: 9 })).arrived).toBe(true)
      return (await host.settled(5353, '::1')).length > 0
    }
    expect(await attempt(), 'IPv6 off at the tap').toBe(false)
    await lab.host.run(
      `sysctl -qw net.ipv6.conf.vm1.accept_dad=0 net.ipv6.conf.vm1.disable_ipv6=0; ip -6 addr replace ${linkLocal}/64 dev vm1 nodad`,
    )
    const before = await counter('not_ipv4')
    expect(await attempt(), 'IPv6 on, the rules alone').toBe(false)
    expect(await counter('not_ipv4')).toBeGreaterThan(before)
    await removeRules([
      'machines have no IPv6',
      'only its own address',
      'only addresses routed to this tap',
      'no other service of the host',
    ])
    expect(await attempt(), 'neither').toBe(true)
    await repair()
    expect(await attempt(), 'put back').toBe(false)
  })

  test('cannot fill the neighbour table of the host, nor take the address of another machine', async () => {
    const ask = (sender: string): Promise<unknown> => first.ask({ do: 'frame', hex: arpRequest(sender, '10.42.0.1') })
    const known = (address: string): Promise<boolean> =>
      lab.host.run(`ip neigh show dev vm1 ${address}`).then((text) => text.includes('02:be:0a:2a:00:05'))
    const before = await counter('arp', 'arp')
    const attempt = async (): Promise<boolean> => {
      await ask('10.42.77.1')
      return await known('10.42.77.1')
    }
    expect(await attempt()).toBe(false)
    await ask(two.address)
    expect(await lab.host.run(`ip neigh show ${two.address}`)).toBe(
      `${two.address} dev vm2 lladdr 02:be:0a:2a:00:06 PERMANENT \n`,
    )
    expect(await counter('arp', 'arp')).toBe(before + 2)
    await lab.host.run('sysctl -qw net.ipv4.conf.vm1.rp_filter=0')
    expect(await attempt(), 'the rule alone').toBe(false)
    await removeRules(["somebody else's address"])
    expect(await attempt(), 'neither').toBe(true)
    await repair()
  })

  test('cannot get a packet out under its private address, which belongs to no connection and is not translated', async () => {
    await internet.listen('raw', 7777)
    await provesEach(['would leave untranslated'], async () => {
      await first.ask({ do: 'reset', address: '198.51.100.10', port: 7777 })
      await first.ask({ do: 'udp', address: '198.51.100.10', port: 9 })
      expect((await internet.ask({ do: 'wait', port: 9, source: '203.0.113.2' })).arrived).toBe(true)
      return (await internet.settled(7777, '127.0.0.1', 'reset')).includes(one.address)
    })
  })

  test('gains nothing from another MAC', async () => {
    await guest.run('ip link set eth0 address 02:be:0a:2a:00:06')
    await first.ask({ do: 'udp', address: '198.51.100.10', port: 9 })
    expect(await second.tcp('198.51.100.10', 8000)).toBe('connected')
    expect(await lab.host.run('ip neigh show dev vm1 nud permanent')).toContain('10.42.0.5 lladdr 02:be:0a:2a:00:05')
    await guest.run(`ip link set eth0 address ${macFor(one.address)}`)
    expect(await first.tcp('198.51.100.10', 8000)).toBe('connected')
  })

  test('gets a bounded number of connections, and leaves the others theirs', async () => {
    const dropped = await counter('flows')
    const flood = async (): Promise<void> => {
      await first.ask({ do: 'udp', address: '198.51.100.10', port: 9, count: 3 * FLOWS })
    }
    await internet.seen(9)
    await flood()
    const arrived: string[] = []
    const decided = async (): Promise<number> => {
      arrived.push(...(await internet.seen(9)))
      return arrived.length + (await counter('flows')) - dropped
    }
    await expect.poll(decided).toBe(3 * FLOWS)
    expect(arrived.length).toBeLessThanOrEqual(FLOWS)
    expect(arrived.length).toBeGreaterThan(FLOWS / 2)
    expect(await second.tcp('198.51.100.10', 8000), 'another machine').toBe('connected')
    expect(await host.tcp(one.address, 8000), 'the gateway to this one').toBe('connected')
    await repair()
    await flood()
    await expect.poll(decided).toBe(6 * FLOWS)
    expect(arrived.length, 'remembered across updates of the rules').toBeLessThanOrEqual(FLOWS + 5)

    await removeRules(['too many connections'])
    arrived.length = 0
    await flood()
    await expect.poll(async () => arrived.push(...(await internet.seen(9)))).toBe(3 * FLOWS)
    await repair()
    // Its own flood goes on hurting it until the kernel forgets those flows (a second here), and not longer.
    expect(await first.tcp('198.51.100.10', 8000)).toBe('connected')
  })
})

describe('from outside', () => {
  test('nobody reaches a machine', async () => {
    await lab.internet.run('ip route add 10.42.0.0/16 via 203.0.113.2')
    await provesEach(
      ['machines are reached through the gateway', 'only processes of the host open connections to machines'],
      async () => {
        await first.seen(9)
        await internet.ask({ do: 'udp', address: one.address, port: 9 })
        // Answered, so it is behind the datagram in line.
        await internet.ask({ do: 'ping', address: '203.0.113.2' })
        await host.ask({ do: 'udp', address: one.address, port: 9 })
        expect((await first.ask({ do: 'wait', port: 9, source: '10.42.0.1' })).arrived).toBe(true)
        return (await first.seen(9)).includes('203.0.113.1')
      },
    )
  })

  test('nobody reaches what listens on the gateway address for machines', async () => {
    await lab.internet.run('ip route replace 10.42.0.0/16 via 203.0.113.2')
    await host.listen('tcp', 16_000, '10.42.0.1')
    const attempt = async (): Promise<boolean> => {
      await internet.ask({ do: 'udp', address: '10.42.0.1', port: 53 })
      await internet.ask({ do: 'ping', address: '203.0.113.2' })
      return (await host.settled(53)).includes('203.0.113.1')
    }
    await host.seen(53)
    await provesEach(['machines are reached through the gateway'], attempt)
  })

  test('nobody passes for a machine', async () => {
    await lab.internet.run('ip addr add 10.42.0.9/32 dev lo')
    await host.seen(53)
    await provesEach(['no machine is out there'], async () => {
      await internet.ask({ do: 'udp', address: '203.0.113.2', port: 53, source: '10.42.0.9' })
      await internet.ask({ do: 'ping', address: '203.0.113.2' })
      return (await host.settled(53)).includes('10.42.0.9')
    })
    await lab.internet.run('ip addr delete 10.42.0.9/32 dev lo')
  })

  test('nobody uses the host as a router, which forwards for machines only', async () => {
    await lab.internet.run('ip route replace 192.168.7.0/24 via 203.0.113.2')
    const attempt = async (): Promise<boolean> => {
      await lan.seen(9)
      await internet.ask({ do: 'udp', address: '192.168.7.1', port: 9 })
      await internet.ask({ do: 'ping', address: '203.0.113.2' })
      await host.ask({ do: 'udp', address: '192.168.7.1', port: 9 })
      expect((await lan.ask({ do: 'wait', port: 9, source: '192.168.7.2' })).arrived).toBe(true)
      return (await lan.seen(9)).includes('203.0.113.1')
    }
    await provesEach(['forwarding is on for machines only'], attempt)
  })

  test('the operator who makes the host a router keeps that', async () => {
    await lab.internet.run('ip route replace 192.168.7.0/24 via 203.0.113.2')
    await lab.host.run('sysctl -qw net.ipv4.ip_forward=1')
    await repair()
    await lan.seen(9)
    await internet.ask({ do: 'udp', address: '192.168.7.1', port: 9 })
    expect((await lan.ask({ do: 'wait', port: 9, source: '203.0.113.1' })).arrived).toBe(true)
    await lab.host.run('sysctl -qw net.ipv4.ip_forward=0')
    await repair()
    expect(await first.tcp('198.51.100.10', 8000)).toBe('connected')
  })
})

describe('a path with a smaller MTU', () => {
  beforeAll(() => lab.host.run('ip link set eth0 mtu 1400'))
  afterAll(() => lab.host.run('ip link set eth0 mtu 1500'))

  test('is told to the guest', async () => {
    expect(await first.ask({ do: 'pathMtu', address: '198.51.100.10' })).toEqual({ mtu: 1400 })
  })

  test('is in the segment size that both ends agree on', async () => {
    const mss = async (): Promise<number> =>
      Number(JSON.parse((await second.ask({ do: 'tcp', address: '198.51.100.10', port: 8000 })).text ?? '').mss)
    const clamped = await mss()
    expect(clamped).toBeLessThanOrEqual(1360)
    await removeRules(['segments fit the path'])
    expect(await mss()).toBeGreaterThan(clamped)
    await repair()
  })
})

/** RFC 826: who has `target`? Asked from the MAC of machine 1 under the address `sender`. */
function arpRequest(sender: string, target: string): string {
  const mac = macFor(one.address).replaceAll(':', '')
  const ip = (address: string): string => macFor(address).replaceAll(':', '').slice(4)
  return `ffffffffffff${mac}0806${'0001'}${'0800'}${'06'}${'04'}${'0001'}${mac}${ip(sender)}${'0'.repeat(12)}${ip(target)}`
}
