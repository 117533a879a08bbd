/**
 * A machine that keeps its own account of what its network card sends and gets, and somebody out there to talk to who
 * keeps another.
 *
 *     machine, nftables of its own on eth0  —tap—  server: Berth  —wan—  198.51.100.9, nftables of the outside world
 *
 * Neither asks Berth, nor the network while it reports: the machine prints its account on its console, each second.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readFileSync } from 'node:fs'
import { promisify } from 'node:util'
import { z } from 'zod'
import { type Product, SERVER_ADDRESS } from './product.ts'

const run = promisify(execFile)

/** Of the outside world, and nobody's but the machine's to talk to. */
const FAR_ADDRESS = '198.51.100.9'
const MACHINE = 'demo'
/** What a card counts in front of each packet, and nobody bills. */
const ETHERNET = 14
/** As large as an answer of its web server. */
export const PAGE_BYTES = 150_000

export type Counted = { bytes: number; packets: number }
/** What the machine's card and its own nftables have counted, without Ethernet. */
export type OwnAccount = { [name in (typeof NAMES)[number]]: Counted }
const NAMES = [
  ...['out', 'in'],
  ...['out_far', 'out_host', 'out_metadata', 'out_rest'],
  ...['in_far', 'in_host', 'in_metadata', 'in_rest', 'in_strange'],
] as const

const TABLE = `
table netdev own {
  counter out_far {}
  counter out_host {}
  counter out_metadata {}
  counter out_rest {}
  counter in_far {}
  counter in_host {}
  counter in_metadata {}
  counter in_rest {}
  counter in_strange {}
  chain out {
    type filter hook egress device eth0 priority 0
    ip daddr ${FAR_ADDRESS} counter name out_far accept
    ip daddr { 10.42.0.1, ${SERVER_ADDRESS} } counter name out_host accept
    ip daddr 169.254.169.254 counter name out_metadata accept
    counter name out_rest
  }
  chain in {
    type filter hook ingress device eth0 priority 0
    ip saddr ${FAR_ADDRESS} counter name in_far accept
    ip saddr { 10.42.0.1, ${SERVER_ADDRESS} } counter name in_host accept
    ip saddr 169.254.169.254 counter name in_metadata accept
    meta protocol ip counter name in_rest accept
    counter name in_strange
  }
}`

/** The image has no nft: this server's comes with its libraries. */
const NFT = 'exec /opt/own/ld-linux-x86-64.so.2 --library-path /opt/own /opt/own/nft "$@"'

/** SIOCETHTOOL, ETHTOOL_SGRO: packets that are put together on arrival would be counted as one, with one header. */
const NO_GRO = `
use Socket; socket(my $s, AF_INET, SOCK_DGRAM, 0) or die; my $off = pack("LL", 0x2c, 0);
my $request = pack("a16 P8 x16", "eth0", $off); ioctl($s, 0x8946, $request) or die "ETHTOOL_SGRO: $!";`

/** Says what was counted whenever that is more than before, and nothing came while it looked. */
const REPORT = `
cd /sys/class/net/eth0/statistics
look() { read -r sent < tx_packets; read -r got < rx_packets; now="$sent $got"; }
while :; do
  look
  if [ "$now" != "$said" ]; then
    counted=$(/opt/own/run list counters)
    read -r out < tx_bytes; read -r in < rx_bytes; before=$now; look
    [ "$now" != "$before" ] || {
      echo "own out $sent $out in $got $in" $(echo "$counted" | sed -n 's/^.counter \\(.*\\) {/\\1/p; s/.*packets \\(.*\\) bytes/\\1/p') . > /dev/console
      said=$now
      [ "$1" != once ] || exit 0
    }
  fi
  sleep 0.5
done`

/** Talks to the far side, in both directions, by TCP and UDP, and to the metadata service: perl talk SEED CONNECTIONS */
const TALK = `
use IO::Socket::INET; my ($seed, $connections) = @ARGV; srand($seed);
for (1 .. $connections) {
  my $udp = IO::Socket::INET->new(PeerAddr => "${FAR_ADDRESS}:9", Proto => "udp"); $udp->send("x" x rand(1400)) for 1 .. 20;
  my $tcp = IO::Socket::INET->new(PeerAddr => "${FAR_ADDRESS}:8000", Timeout => 60) or die $!;
  my ($there, $back) = (int(rand(300000)), int(rand(200000)));
  print $tcp "$there $back\\n", "x" x $there; $tcp->flush; my $got = 0;
  while (my $n = sysread($tcp, my $piece, 65536)) { $got += $n } $got == $back or die "$got of $back";
  close $tcp;
  my $free = IO::Socket::INET->new(PeerAddr => "169.254.169.254:80", Timeout => 60);
  if ($free) { print $free "GET / HTTP/1.0\\r\\n\\r\\n"; $free->flush; 1 while sysread($free, my $piece, 65536); close $free }
  select(undef, undef, undef, rand(0.3));
}`

const UNTIL_ALONE = `
while (IO::Socket::INET->new(PeerAddr => "169.254.169.254:80", Timeout => 60)) { select(undef, undef, undef, 0.3) }`

const PAGES = `
use IO::Socket::INET; my $s = IO::Socket::INET->new(LocalPort => 8000, Listen => 9, ReuseAddr => 1) or die; $SIG{PIPE} = "IGNORE";
while (1) { my $c = $s->accept or next; <$c>; print $c "HTTP/1.0 200 OK\\r\\nContent-Type: text/plain\\r\\n\\r\\n", "p" x ${PAGE_BYTES}; close $c }`

const FAR_SIDE = `
import socket, threading
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); udp.bind(("${FAR_ADDRESS}", 9))
def swallow():
    while True: udp.recv(2048)
def serve(c):
    with c, c.makefile("rb") as f:
        there, back = map(int, f.readline().split())
        while there > 0:
            got = f.read(min(there, 65536))
            if not got: return
            there -= len(got)
        c.sendall(b"y" * back)
threading.Thread(target=swallow, daemon=True).start()
tcp = socket.create_server(("${FAR_ADDRESS}", 8000), backlog=16)
print("ready", flush=True)
while True: threading.Thread(target=serve, args=(tcp.accept()[0],), daemon=True).start()
`

export class AccountingMachine implements AsyncDisposable {
  readonly #product: Product
  readonly #far: ChildProcess
  readonly id: number

  private constructor(product: Product, far: ChildProcess, id: number) {
    this.#product = product
    this.#far = far
    this.id = id
  }

  /** @param product without a machine called demo */
  static async make(product: Product): Promise<AccountingMachine> {
    await run('ip', ['-n', product.outsideNamespace, 'address', 'add', `${FAR_ADDRESS}/32`, 'dev', 'lo'])
    const rules = `table inet own {
      counter from_machine {}
      counter to_machine {}
      chain in { type filter hook prerouting priority -300; ip daddr ${FAR_ADDRESS} counter name from_machine; }
      chain out { type filter hook postrouting priority 300; ip saddr ${FAR_ADDRESS} counter name to_machine; }
    }`
    const counting = await product.outside('nft', ['-f', '-'], { input: rules })
    if (counting.status !== 0) throw new Error(counting.stderr)
    const far = spawn('ip', ['netns', 'exec', product.outsideNamespace, 'python3', '-c', FAR_SIDE], {
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    try {
      await once(far.stdout ?? far, 'data')
      const made = await product.lobby(`new ${MACHINE} --image minimal --memory 512M --cpu 1 --disk 2G`)
      if (made.status !== 0) throw new Error(`no machine: ${made.stderr}`)
      const [row] = await product.sql()<{ id: number }[]>`select id from machines where name = ${MACHINE}`
      const machine = new AccountingMachine(product, far, row?.id ?? 0)
      // What systemd starts beside it would be in the way.
      await machine.inside('systemctl is-system-running --wait || true')
      await machine.#countForItself()
      await machine.inside(`setsid perl -e '${PAGES}' > /dev/null 2>&1 < /dev/null &`)
      return machine
    } catch (error) {
      far.kill()
      throw error
    }
  }

  async #countForItself(): Promise<void> {
    const { stdout } = await run('ldd', ['/usr/sbin/nft'])
    const libraries = [...stdout.matchAll(/(\/\S+) \(0x/g)].map(([, path]) => path ?? '')
    const files = ['/usr/sbin/nft', ...libraries]
    const pack = ['--create', '--dereference', '--absolute-names', '--transform', 's|.*/||', ...files]
    const packed = await run('tar', pack, { encoding: 'buffer', maxBuffer: 2 ** 26 })
    await this.inside('sudo mkdir /opt/own && sudo tar -x -C /opt/own', packed.stdout)
    const write = (name: string, text: string) => this.inside(`sudo tee /opt/own/${name} > /dev/null`, text)
    await write('run', `#!/bin/sh\n${NFT}\n`)
    await write('table', TABLE)
    await write('talk', TALK)
    await write('report', REPORT)
    await this.inside('sudo chmod +x /opt/own/run')
    await this.inside(`sudo perl -e '${NO_GRO}' && sudo /opt/own/run -f /opt/own/table`)
    await this.inside('sudo setsid sh /opt/own/report > /dev/null 2>&1 < /dev/null &')
  }

  async inside(command: string, input?: string | Buffer): Promise<string> {
    const done = await this.#product.ssh(
      [`${MACHINE}@${SERVER_ADDRESS}`, command],
      input === undefined ? {} : { input },
    )
    if (done.status !== 0) throw new Error(`${command}: ${done.status} ${done.stderr}${done.stdout}`)
    return done.stdout.trim()
  }

  /** Has it talk to the far side, whatever becomes of this connection; `hasTalked` tells when it is done. */
  async talk(seed: number, connections: number): Promise<void> {
    const then = `echo "has talked ${seed}, $?." > /dev/console`
    await this.inside(
      `sudo setsid sh -c 'perl /opt/own/talk ${seed} ${connections}; ${then}' > /dev/null 2>&1 < /dev/null &`,
    )
  }

  hasTalked(seed: number): boolean {
    const status = new RegExp(`has talked ${seed}, (\\d+)\\.`).exec(this.#console())?.[1]
    if (status !== undefined && status !== '0') throw new Error(`it could not talk: ${status}`)
    return status === '0'
  }

  /**
   * Has it wait until nothing answers for its metadata, which is when its vmhost has ended; then talk, take its card down,
   * say what it has counted, and switch itself off.
   */
  async talkAndSwitchOff(seed: number): Promise<void> {
    const wait = `perl -MIO::Socket::INET -e '${UNTIL_ALONE}'`
    const last =
      'ip link set eth0 down; sh /opt/own/report once; date > /opt/own/off; sync; echo o > /proc/sysrq-trigger'
    await this.inside('sudo tee /opt/own/last > /dev/null', `${wait}; perl /opt/own/talk ${seed} 3; ${last}\n`)
    await this.inside('sudo setsid sh /opt/own/last > /dev/null 2>&1 < /dev/null &')
  }

  /** What it said last. */
  account(): OwnAccount {
    const said = [...this.#console().matchAll(/own ([a-z_0-9 ]+) \./g)].at(-1)?.[1]
    if (said === undefined) throw new Error('it has said nothing yet')
    const found = new Map(
      [...said.matchAll(/([a-z_]+) (\d+) (\d+)/g)].map(([, name = '', packets, bytes]) => [
        name,
        { packets: Number(packets), bytes: Number(bytes) },
      ]),
    )
    return Object.fromEntries(
      NAMES.map((name) => {
        const counted = found.get(name)
        if (!counted) throw new Error(`it says nothing of ${name}: ${said}`)
        // On the way in, nftables sees packets when their Ethernet header is off.
        const header = name.startsWith('in_') ? 0 : ETHERNET
        return [name, { packets: counted.packets, bytes: counted.bytes - header * counted.packets }]
      }),
    ) as OwnAccount
  }

  /** What the far side has counted. */
  async farAccount(): Promise<{ from: Counted; to: Counted }> {
    const { stdout } = await this.#product.outside('nft', ['-j', 'list', 'counters'])
    const { nftables } = countersSchema.parse(JSON.parse(stdout))
    const of = (name: string): Counted => {
      const counter = nftables.find((one) => one.counter?.name === name)?.counter
      if (!counter) throw new Error(`the far side does not count ${name}`)
      return { bytes: counter.bytes, packets: counter.packets }
    }
    return { from: of('from_machine'), to: of('to_machine') }
  }

  #console(): string {
    const path = this.#product.storePath(`machines/${this.id}/console.log`)
    return existsSync(path) ? readFileSync(path, 'latin1') : ''
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#far.exitCode !== null || this.#far.signalCode !== null) return
    const exit = once(this.#far, 'exit')
    this.#far.kill()
    await exit
  }
}

const countersSchema = z.object({
  nftables: z.array(
    z.object({ counter: z.object({ name: z.string(), bytes: z.number(), packets: z.number() }).optional() }),
  ),
})
