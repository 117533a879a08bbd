import type { Sql } from '../../migrations/connect.ts'
import type { Lease } from '../reconcile/lease.ts'
import { LeaseLostError } from '../reconcile/rows.ts'
import type { Reading } from './readings.ts'
import type { Piece } from './spans.ts'

/** The ledger as a vmhost appends to it: facts of its own machines, under its lease. A repeat changes nothing. */
export class LedgerRows {
  readonly #sql: Sql
  readonly #lease: Lease

  constructor(sql: Sql, lease: Lease) {
    this.#sql = sql
    this.#lease = lease
  }

  /** @throws LeaseLostError, and what the database refuses: none of them is there then */
  async appendSpans(pieces: readonly Piece[]): Promise<void> {
    const rows = pieces.map((piece) => ({
      ...piece,
      startedAt: new Date(piece.startedAt),
      endedAt: new Date(piece.endedAt),
    }))
    const written = await this.#sql`
      insert into machine_spans (machine_id, host_id, started_at, ended_at, state, cpus, memory_bytes, disk_bytes,
        checkpoint_bytes)
      select "machineId", ${this.#lease.hostId}::int, "startedAt", "endedAt", state, cpus, "memoryBytes", "diskBytes",
        "checkpointBytes"
      from jsonb_to_recordset(${this.#sql.json(rows as never)}::jsonb) as r("machineId" int, "startedAt" timestamptz,
        "endedAt" timestamptz, state text, cpus int, "memoryBytes" bigint, "diskBytes" bigint, "checkpointBytes" bigint)
      where ${this.#underLease()} order by "startedAt"
      on conflict do nothing`
    if (written.count === 0) await this.#checkLease()
  }

  /** What the ledger does not have of a piece, where it has some of its time already. Index: the primary key. */
  async missingOf(piece: Piece): Promise<Piece[]> {
    const [from, to] = [new Date(piece.startedAt), new Date(piece.endedAt)]
    const found = await this.#sql<{ startedAt: Date; endedAt: Date }[]>`
      select lower(missing) as "startedAt", upper(missing) as "endedAt"
      from unnest(tstzmultirange(tstzrange(${from}, ${to})) - (
        select coalesce(range_agg(during), '{}') from machine_spans where machine_id = ${piece.machineId}
          and started_at < ${to} and started_at >= ${from}::timestamptz - interval '1 day')) as missing`
    return found.map(({ startedAt, endedAt }) => ({
      ...piece,
      startedAt: startedAt.getTime(),
      endedAt: endedAt.getTime(),
    }))
  }

  /** @throws LeaseLostError, and what the database refuses: none of them is there then */
  async appendReadings(readings: readonly Reading[]): Promise<void> {
    const rows = readings.map((reading) => ({ ...reading, at: new Date(reading.at) }))
    const written = await this.#sql`
      insert into transfer_readings (series, sequence, machine_id, host_id, host_boot, at, direct_out_bytes,
        direct_out_packets, direct_in_bytes, direct_in_packets, gateway_out_bytes, gateway_out_packets,
        gateway_in_bytes, gateway_in_packets)
      select series, sequence, "machineId", ${this.#lease.hostId}::int, boot, at, "directOutBytes",
        "directOutPackets", "directInBytes", "directInPackets", "gatewayOutBytes", "gatewayOutPackets",
        "gatewayInBytes", "gatewayInPackets"
      from jsonb_to_recordset(${this.#sql.json(rows as never)}::jsonb) as r(series uuid, sequence bigint,
        "machineId" int, boot uuid, at timestamptz, "directOutBytes" bigint, "directOutPackets" bigint, "directInBytes" bigint,
        "directInPackets" bigint, "gatewayOutBytes" bigint, "gatewayOutPackets" bigint, "gatewayInBytes" bigint,
        "gatewayInPackets" bigint)
      where ${this.#underLease()}
      on conflict do nothing`
    if (written.count === 0) await this.#checkLease()
  }

  /** The last reading of each of these series before a sequence. Index: the primary key, once a series. */
  async lastReadings(series: readonly string[], before = Number.MAX_SAFE_INTEGER): Promise<Reading[]> {
    const found = await this.#sql<(Omit<Reading, 'at'> & { at: Date })[]>`
      select r.series, r.sequence, r.machine_id as "machineId", r.host_boot as boot, r.at,
        r.direct_out_bytes as "directOutBytes", r.direct_out_packets as "directOutPackets",
        r.direct_in_bytes as "directInBytes", r.direct_in_packets as "directInPackets",
        r.gateway_out_bytes as "gatewayOutBytes", r.gateway_out_packets as "gatewayOutPackets",
        r.gateway_in_bytes as "gatewayInBytes", r.gateway_in_packets as "gatewayInPackets"
      from unnest(${series}::uuid[]) as s(name) cross join lateral (
        select * from transfer_readings where series = s.name and sequence < ${before} order by sequence desc limit 1) r`
    return found.map((reading) => ({ ...reading, at: reading.at.getTime() }))
  }

  /** Until when the ledger has the time of each machine of this server. Index: its primary key, once a machine. */
  async ends(): Promise<Map<number, number>> {
    const found = await this.#sql<{ id: number; endedAt: Date }[]>`
      select m.id, last.ended_at as "endedAt" from machines m, lateral (
        select ended_at from machine_spans where machine_id = m.id order by started_at desc limit 1) last
      where m.host_id = ${this.#lease.hostId} and m.observed_state <> 'gone'`
    return new Map(found.map(({ id, endedAt }) => [id, endedAt.getTime()]))
  }

  /** Bytes that checkpoints of this server's machines hold, by machine. Index: checkpoints_by_machine. */
  async checkpointBytes(): Promise<Map<number, number>> {
    const found = await this.#sql<{ id: number; bytes: number }[]>`
      select m.id, sum(c.observed_held_bytes)::bigint as bytes from machines m join checkpoints c on c.machine_id = m.id
      where m.host_id = ${this.#lease.hostId} and m.observed_state <> 'gone' and c.observed_state = 'kept'
        and c.desired_state = 'kept' and not c.for_copy and c.observed_held_bytes is not null
      group by m.id`
    return new Map(found.map(({ id, bytes }) => [id, bytes]))
  }

  #underLease() {
    return this.#sql`exists (select from hosts where id = ${this.#lease.hostId} and lease_epoch = ${this.#lease.epoch})`
  }

  async #checkLease(): Promise<void> {
    const [held] = await this.#sql`select where ${this.#underLease()}`
    if (!held) throw new LeaseLostError('Another vmhost has taken over this server')
  }
}
