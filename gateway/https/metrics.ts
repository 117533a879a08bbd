import { Counter, Gauge, Histogram, Registry } from 'prom-client'
import type { Finished } from './proxy/context.ts'

/** Families are prefixed `berth_https_`; `registry.metrics()` is what BERTH_METRICS serves. */
export class HttpsMetrics {
  readonly registry: Registry
  readonly handshakes: Counter<'result'>
  readonly wakes: Histogram
  readonly #firstByte: Histogram
  readonly #requests: Counter<'status' | 'protocol'>
  readonly #cuts: Counter<'code'>
  // A labelled counter looks its child up by a string it builds: too dear for every request, so these are plain
  // numbers that become counters when somebody reads them.
  readonly #counted = new Map<string, { protocol: string; status: string; count: number }>()
  readonly #byStatus: Record<'h1' | 'h2', { count: number }[]> = { h1: [], h2: [] }
  #sentBytes = 0

  /** @param read gauges that are read, not kept */
  constructor(
    read: {
      clients: () => number
      upstreams: () => number
      tunnels: () => number
      certificateExpiryAt: () => ReadonlyMap<string, Date>
    },
    registry = new Registry(),
  ) {
    this.registry = registry
    const registers = [registry]
    const gauge = (name: string, help: string, value: () => number) =>
      new Gauge({
        name,
        help,
        registers,
        collect() {
          this.set(value())
        },
      })
    gauge('berth_https_connections', 'client connections open', read.clients)
    gauge('berth_https_machine_connections', 'connections to machines open, idle ones included', read.upstreams)
    gauge('berth_https_tunnels', 'WebSockets and other upgraded connections open', read.tunnels)
    new Gauge({
      name: 'berth_https_certificate_expiry_seconds',
      help: 'when a certificate in use expires, as Unix time',
      labelNames: ['name'],
      registers,
      collect() {
        this.reset()
        for (const [name, at] of read.certificateExpiryAt()) this.set({ name }, at.getTime() / 1000)
      },
    })
    const flush = () => this.#flush()
    this.#requests = new Counter({
      name: 'berth_https_requests_total',
      help: 'requests at machines’ hosts by status',
      labelNames: ['status', 'protocol'],
      registers,
      collect: flush,
    })
    new Counter({
      name: 'berth_https_sent_bytes_total',
      help: 'body bytes sent to clients',
      registers,
      collect: () => {},
    })
    this.#cuts = new Counter({
      name: 'berth_https_cuts_total',
      help: 'exchanges that the machine’s side ended early, by reason',
      labelNames: ['code'],
      registers,
    })
    this.handshakes = new Counter({
      name: 'berth_https_handshakes_total',
      help: 'TLS handshakes',
      labelNames: ['result'],
      registers,
    })
    this.wakes = new Histogram({
      name: 'berth_https_wake_seconds',
      help: 'how long the first request to a sleeping machine waited for it',
      buckets: [0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60],
      registers,
    })
    this.#firstByte = new Histogram({
      name: 'berth_https_first_byte_seconds',
      help: 'from a request’s head to the head of its response',
      buckets: [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60],
      registers,
    })
  }

  finished(exchange: Finished): void {
    const counts = this.#byStatus[exchange.protocol]
    const counted = counts[exchange.status]
    if (counted) counted.count++
    else {
      const added = { protocol: exchange.protocol, status: String(exchange.status), count: 1 }
      counts[exchange.status] = added
      this.#counted.set(`${exchange.protocol} ${exchange.status}`, added)
    }
    this.#sentBytes += exchange.sentBytes
    if (exchange.firstByteAtMs !== undefined)
      this.#firstByte.observe((exchange.firstByteAtMs - exchange.startedAtMs) / 1000)
    if (exchange.cut !== undefined) this.#cuts.inc({ code: exchange.cut })
  }

  #flush(): void {
    for (const counted of this.#counted.values()) {
      this.#requests.inc({ status: counted.status, protocol: counted.protocol }, counted.count)
      counted.count = 0
    }
    const sent = this.registry.getSingleMetric('berth_https_sent_bytes_total')
    if (sent instanceof Counter) sent.inc(this.#sentBytes)
    this.#sentBytes = 0
  }
}
