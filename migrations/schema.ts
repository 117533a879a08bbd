/**
 * The database as Drizzle sees it. The SQL files are the truth (constraints, triggers, grants); a test compares
 * these columns with the migrated database, so neither can drift.
 */
import { sql } from 'drizzle-orm'
import {
  bigint,
  boolean,
  customType,
  date,
  inet,
  integer,
  jsonb,
  numeric,
  pgTable,
  primaryKey,
  real,
  text,
  timestamp,
  uuid,
} from 'drizzle-orm/pg-core'

const bytea = customType<{ data: Buffer }>({ dataType: () => 'bytea' })
const time = (name: string) => timestamp(name, { withTimezone: true, mode: 'date' })
const int8 = (name: string) => bigint(name, { mode: 'number' })
const tstzrange = customType<{ data: string }>({ dataType: () => 'tstzrange' })
const identity = () => integer('id').primaryKey().generatedAlwaysAsIdentity()

export const settings = pgTable('settings', {
  key: text('key').primaryKey(),
  value: text('value').notNull(),
})

export const secrets = pgTable('secrets', {
  name: text('name').primaryKey(),
  ciphertext: bytea('ciphertext').notNull(),
  createdAt: time('created_at').notNull().defaultNow(),
})

/** Who sells or buys, as invoices name them; each if it was given. */
export type Party = { name?: string; address?: string; tax_id?: string }
/** An account as it was when its invoice was closed. */
export type Buyer = Party & { email?: string }

export const accounts = pgTable('accounts', {
  id: identity(),
  email: text('email'),
  isOwner: boolean('is_owner').notNull().default(false),
  defaults: jsonb('defaults').$type<Record<string, string>>().notNull().default({}),
  maxMachines: integer('max_machines'),
  suspendedAt: time('suspended_at'),
  createdAt: time('created_at').notNull().defaultNow(),
  emailProvedAt: time('email_proved_at'),
  domainProof: text('domain_proof').notNull().default(sql`replace(gen_random_uuid()::text, '-', '')`),
  overLimitAt: time('over_limit_at'),
  billingDetails: jsonb('billing_details').$type<Party>(),
})

export const keys = pgTable('keys', {
  id: identity(),
  accountId: integer('account_id').notNull(),
  name: text('name').notNull(),
  algorithm: text('algorithm').notNull(),
  publicKey: bytea('public_key').notNull(),
  fingerprint: text('fingerprint').notNull(),
  comment: text('comment').notNull().default(''),
  createdAt: time('created_at').notNull().defaultNow(),
  lastUsedAt: time('last_used_at'),
})

export const lobbyNames = pgTable(
  'lobby_names',
  {
    name: text('name').notNull(),
    accountId: integer('account_id').notNull(),
    createdAt: time('created_at').notNull().defaultNow(),
  },
  (t) => [primaryKey({ columns: [t.name, t.accountId] })],
)

export const invitations = pgTable('invitations', {
  id: identity(),
  codeHash: bytea('code_hash').notNull(),
  accountId: integer('account_id'),
  makesOwner: boolean('makes_owner').notNull().default(false),
  usesLeft: integer('uses_left').notNull(),
  expiresAt: time('expires_at').notNull(),
  createdAt: time('created_at').notNull().defaultNow(),
})

export const emailCodes = pgTable('email_codes', {
  id: identity(),
  email: text('email').notNull(),
  publicKey: bytea('public_key').notNull(),
  codeHash: bytea('code_hash').notNull(),
  attemptsLeft: integer('attempts_left').notNull().default(5),
  expiresAt: time('expires_at').notNull(),
  client: text('client').notNull().default(''),
})

export const mails = pgTable('mails', {
  id: identity(),
  recipient: text('recipient').notNull(),
  subject: text('subject').notNull(),
  body: text('body').notNull(),
  createdAt: time('created_at').notNull().defaultNow(),
  sentAt: time('sent_at'),
  attempts: integer('attempts').notNull().default(0),
  nextAttemptAt: time('next_attempt_at').notNull().defaultNow(),
  lastError: text('last_error'),
  invitedBy: integer('invited_by'),
})

export type HostImage = { name: string; hash: string; sizeBytes: number; loginUser: string; description: string }
export type DoctorFinding = { check: string; ok: boolean; message: string; remedy?: string }

export const hosts = pgTable('hosts', {
  id: identity(),
  name: text('name').notNull(),
  leaseEpoch: int8('lease_epoch').notNull().default(0),
  leaseExpiresAt: time('lease_expires_at').notNull().defaultNow(),
  bootId: uuid('boot_id'),
  draining: boolean('draining').notNull().default(false),
  cpus: integer('cpus').notNull().default(0),
  memoryBytes: int8('memory_bytes').notNull().default(0),
  machineOverheadBytes: int8('machine_overhead_bytes').notNull().default(0),
  memoryAvailableBytes: int8('memory_available_bytes').notNull().default(0),
  memoryUsedBytes: int8('memory_used_bytes').notNull().default(0),
  memoryReclaimedBytes: int8('memory_reclaimed_bytes').notNull().default(0),
  storeBytes: int8('store_bytes').notNull().default(0),
  storeFreeBytes: int8('store_free_bytes').notNull().default(0),
  memoryOvercommit: numeric('memory_overcommit', { precision: 4, scale: 2, mode: 'number' }).notNull().default(1),
  hypervisor: text('hypervisor').notNull().default(''),
  accelerator: text('accelerator').notNull().default(''),
  acceleratorReason: text('accelerator_reason').notNull().default(''),
  nested: boolean('nested').notNull().default(false),
  images: jsonb('images').$type<HostImage[]>().notNull().default([]),
  doctor: jsonb('doctor').$type<DoctorFinding[]>().notNull().default([]),
  version: text('version').notNull().default(''),
  startedAt: time('started_at'),
})

export type DesiredState = 'running' | 'stopped' | 'asleep' | 'paused' | 'trashed' | 'gone'
export type ObservedState = 'creating' | 'running' | 'asleep' | 'stopped' | 'trashed' | 'gone' | 'failed'
/**
 * `observed_asleep_because` of a machine that was wanted awake, and that its server has not now what it takes to
 * restore, or has failed to: `observed_reason` says what. Whoever wants it awake has it tried again, as does a vmhost
 * that starts and has what it takes.
 */
export const cannotRestore = 'its server cannot restore its memory now'
export type StartStage = 'waiting' | 'image' | 'disk' | 'network' | 'boot' | 'ssh' | 'ready'
export type SetupState = 'waiting' | 'running' | 'done' | 'failed'

export const machines = pgTable('machines', {
  id: identity(),
  accountId: integer('account_id').notNull(),
  hostId: integer('host_id').notNull(),
  name: text('name').notNull(),
  image: text('image').notNull(),
  cpus: integer('cpus').notNull(),
  memoryBytes: int8('memory_bytes').notNull(),
  diskBytes: int8('disk_bytes').notNull(),
  /**
   * In plain text, and so in every backup of the database: the vmhost reads it to give it to the machine, and a key that
   * every server holds would protect it from nobody who can read the row.
   */
  env: jsonb('env').$type<Record<string, string>>().notNull().default({}),
  command: text('command').notNull().default('auto'),
  tags: text('tags').array().notNull().default([]),
  comment: text('comment').notNull().default(''),
  sleepAfterSeconds: integer('sleep_after_seconds'),
  /** Null without one, and again when it has ended. */
  setupScript: text('setup_script'),
  setupState: text('setup_state').$type<SetupState>(),
  setupExitStatus: integer('setup_exit_status'),
  setupEndedAt: time('setup_ended_at'),
  createdAt: time('created_at').notNull().defaultNow(),
  desiredState: text('desired_state').$type<DesiredState>().notNull().default('running'),
  desiredBoot: integer('desired_boot').notNull().default(1),
  trashedAt: time('trashed_at'),
  observedState: text('observed_state').$type<ObservedState>().notNull().default('creating'),
  observedBoot: integer('observed_boot').notNull().default(0),
  observedReason: text('observed_reason'),
  observedStage: text('observed_stage').$type<StartStage>().notNull().default('waiting'),
  observedStageAt: time('observed_stage_at').notNull().defaultNow(),
  observedHostKey: bytea('observed_host_key'),
  observedLoginUser: text('observed_login_user'),
  observedReadyAt: time('observed_ready_at'),
  observedStartedAt: time('observed_started_at'),
  observedCpus: integer('observed_cpus'),
  observedMemoryBytes: int8('observed_memory_bytes'),
  observedDiskBytes: int8('observed_disk_bytes'),
  observedResizeCpus: integer('observed_resize_cpus'),
  observedResizeMemoryBytes: int8('observed_resize_memory_bytes'),
  observedAt: time('observed_at').notNull().defaultNow(),
  webPort: integer('web_port'),
  observedWebPort: integer('observed_web_port'),
  webPublic: boolean('web_public').notNull().default(false),
  token: uuid('token').notNull().default(sql`gen_random_uuid()`),
  sleepNever: boolean('sleep_never').notNull().default(false),
  holdUntil: time('hold_until'),
  observedAwakeBecause: text('observed_awake_because'),
  observedIdleSince: time('observed_idle_since'),
  observedAsleepBecause: text('observed_asleep_because'),
  observedAsleepAt: time('observed_asleep_at'),
  observedSavedBytes: int8('observed_saved_bytes'),
  restoreFrom: integer('restore_from'),
  restoreKeeps: integer('restore_keeps'),
  desiredRestore: integer('desired_restore').notNull().default(0),
  observedRestore: integer('observed_restore').notNull().default(0),
  observedRestoreProblem: text('observed_restore_problem'),
  restoreCpusBefore: integer('restore_cpus_before'),
  restoreMemoryBytesBefore: int8('restore_memory_bytes_before'),
  restoreStateBefore: text('restore_state_before'),
})

export type CheckpointState = 'waiting' | 'kept' | 'failed' | 'gone'

export const checkpoints = pgTable('checkpoints', {
  id: identity(),
  machineId: integer('machine_id').notNull(),
  accountId: integer('account_id').notNull(),
  comment: text('comment').notNull().default(''),
  forCopy: boolean('for_copy').notNull().default(false),
  diskOnly: boolean('disk_only').notNull().default(false),
  token: uuid('token').notNull().default(sql`gen_random_uuid()`),
  createdAt: time('created_at').notNull().defaultNow(),
  desiredState: text('desired_state').$type<'kept' | 'gone'>().notNull().default('kept'),
  observedState: text('observed_state').$type<CheckpointState>().notNull().default('waiting'),
  observedReason: text('observed_reason'),
  observedTakenAt: time('observed_taken_at'),
  observedDiskBytes: int8('observed_disk_bytes'),
  observedCpus: integer('observed_cpus'),
  observedMemoryBytes: int8('observed_memory_bytes'),
  observedSavedBytes: int8('observed_saved_bytes'),
  observedHeldBytes: int8('observed_held_bytes'),
  observedStillMs: integer('observed_still_ms'),
})

export type ActivityKind = 'ssh' | 'https' | 'websocket'

export const machineActivity = pgTable('machine_activity', {
  machineId: integer('machine_id').primaryKey(),
  at: time('at').notNull(),
  what: text('what').$type<ActivityKind>().notNull(),
})

export const machineNames = pgTable('machine_names', {
  name: text('name').primaryKey(),
  machineId: integer('machine_id').notNull(),
})

export const addresses = pgTable('addresses', {
  address: inet('address').primaryKey(),
  machineId: integer('machine_id').notNull(),
})

export const consoleChunks = pgTable(
  'console_chunks',
  {
    machineId: integer('machine_id').notNull(),
    seq: int8('seq').notNull(),
    boot: integer('boot').notNull(),
    at: time('at').notNull().defaultNow(),
    bytes: bytea('bytes').notNull(),
  },
  (t) => [primaryKey({ columns: [t.machineId, t.seq] })],
)

export type MachineReport = {
  cpuSeconds: number
  memoryTotalBytes: number
  memoryAvailableBytes: number
  load1: number
  uptimeSeconds: number
  listeningPorts: number[]
  txBytes: number
  rxBytes: number
}

export const machineReports = pgTable('machine_reports', {
  machineId: integer('machine_id').primaryKey(),
  at: time('at').notNull(),
  report: jsonb('report').$type<MachineReport>().notNull(),
})

export type ImageStep = 'waiting' | 'resolving' | 'fetching' | 'reading' | 'unpacking' | 'making'

export const imagePulls = pgTable('image_pulls', {
  machineId: integer('machine_id').primaryKey(),
  at: time('at').notNull().defaultNow(),
  step: text('step').$type<ImageStep>().notNull(),
  doneBytes: int8('done_bytes'),
  totalBytes: int8('total_bytes'),
  layersDone: integer('layers_done'),
  layers: integer('layers'),
})

export const events = pgTable('events', {
  id: int8('id').primaryKey().generatedAlwaysAsIdentity(),
  at: time('at').notNull().defaultNow(),
  accountId: integer('account_id'),
  machineId: integer('machine_id'),
  machineName: text('machine_name'),
  actor: text('actor').notNull(),
  address: text('address'),
  kind: text('kind').notNull(),
  detail: jsonb('detail').$type<Record<string, unknown>>().notNull().default({}),
  via: text('via').$type<'ssh' | 'exec' | 'web'>(),
  command: text('command'),
})

export const certificates = pgTable('certificates', {
  name: text('name').primaryKey(),
  issuer: text('issuer').notNull(),
  chain: text('chain').notNull(),
  sealedKey: bytea('sealed_key').notNull(),
  notBefore: time('not_before').notNull(),
  notAfter: time('not_after').notNull(),
  renewAt: time('renew_at').notNull(),
})

export const webSessions = pgTable('web_sessions', {
  id: identity(),
  tokenHash: bytea('token_hash').notNull(),
  accountId: integer('account_id'),
  email: text('email'),
  address: text('address').notNull().default(''),
  createdAt: time('created_at').notNull().defaultNow(),
  lastUsedAt: time('last_used_at').notNull().defaultNow(),
  expiresAt: time('expires_at').notNull(),
})

export const signInLinks = pgTable('sign_in_links', {
  tokenHash: bytea('token_hash').primaryKey(),
  accountId: integer('account_id').notNull(),
  expiresAt: time('expires_at').notNull(),
})

export const shares = pgTable('shares', {
  id: identity(),
  machineId: integer('machine_id').notNull(),
  email: text('email').notNull(),
  tokenHash: bytea('token_hash').notNull(),
  accountId: integer('account_id'),
  createdAt: time('created_at').notNull().defaultNow(),
  acceptedAt: time('accepted_at'),
})

export const shareLinks = pgTable('share_links', {
  id: identity(),
  machineId: integer('machine_id').notNull(),
  tokenHash: bytea('token_hash').notNull(),
  usesLeft: integer('uses_left'),
  used: integer('used').notNull().default(0),
  createdAt: time('created_at').notNull().defaultNow(),
  expiresAt: time('expires_at'),
})

export const siteCodes = pgTable('site_codes', {
  codeHash: bytea('code_hash').primaryKey(),
  sessionId: integer('session_id').notNull(),
  machineId: integer('machine_id').notNull(),
  host: text('host').notNull(),
  path: text('path').notNull(),
  stateHash: bytea('state_hash').notNull(),
  expiresAt: time('expires_at').notNull(),
})

export const siteSessions = pgTable('site_sessions', {
  id: identity(),
  tokenHash: bytea('token_hash').notNull(),
  machineId: integer('machine_id').notNull(),
  sessionId: integer('session_id'),
  linkId: integer('link_id'),
  createdAt: time('created_at').notNull().defaultNow(),
  expiresAt: time('expires_at').notNull(),
  host: text('host').notNull(),
})

export const tokens = pgTable('tokens', {
  id: identity(),
  tokenHash: bytea('token_hash').notNull(),
  accountId: integer('account_id').notNull(),
  label: text('label').notNull().default(''),
  machineId: integer('machine_id'),
  tag: text('tag'),
  commands: text('commands').array(),
  madeByToken: integer('made_by_token'),
  madeByKey: integer('made_by_key'),
  createdAt: time('created_at').notNull().defaultNow(),
  lastUsedAt: time('last_used_at'),
  expiresAt: time('expires_at').notNull(),
})

export const customDomains = pgTable('custom_domains', {
  domain: text('domain').primaryKey(),
  machineId: integer('machine_id').notNull(),
  wildcard: boolean('wildcard').notNull().default(false),
  addedAt: time('added_at').notNull().defaultNow(),
})

export const acmeCertificates = pgTable('acme_certificates', {
  name: text('name').primaryKey(),
  names: text('names').array().notNull(),
  domain: text('domain'),
  directory: text('directory'),
  chain: text('chain'),
  sealedKey: bytea('sealed_key'),
  notBefore: time('not_before'),
  notAfter: time('not_after'),
  renewAt: time('renew_at'),
  failures: integer('failures').notNull().default(0),
  problem: text('problem'),
  triedAt: time('tried_at'),
  tryAt: time('try_at').notNull().defaultNow(),
  leasedUntil: time('leased_until').notNull().defaultNow(),
  lease: integer('lease').notNull().default(0),
})

export const acmeOrders = pgTable('acme_orders', {
  id: identity(),
  accountId: integer('account_id'),
  at: time('at').notNull().defaultNow(),
})

export const acmeChallenges = pgTable('acme_challenges', {
  id: identity(),
  kind: text('kind').notNull(),
  name: text('name').notNull(),
  token: text('token').notNull().default(''),
  value: text('value').notNull(),
  expiresAt: time('expires_at').notNull(),
})

export type SpanState = 'creating' | 'running' | 'asleep' | 'stopped' | 'failed'

export const machineSpans = pgTable(
  'machine_spans',
  {
    machineId: integer('machine_id').notNull(),
    hostId: integer('host_id').notNull(),
    startedAt: time('started_at').notNull(),
    endedAt: time('ended_at').notNull(),
    during: tstzrange('during').notNull().generatedAlwaysAs(sql`tstzrange(started_at, ended_at, '[)')`),
    state: text('state').$type<SpanState>().notNull(),
    cpus: integer('cpus').notNull(),
    memoryBytes: int8('memory_bytes').notNull(),
    diskBytes: int8('disk_bytes').notNull(),
    checkpointBytes: int8('checkpoint_bytes').notNull().default(0),
  },
  (t) => [primaryKey({ columns: [t.machineId, t.startedAt] })],
)

export const transferReadings = pgTable(
  'transfer_readings',
  {
    series: uuid('series').notNull(),
    sequence: int8('sequence').notNull(),
    machineId: integer('machine_id').notNull(),
    hostId: integer('host_id').notNull(),
    hostBoot: uuid('host_boot').notNull(),
    at: time('at').notNull(),
    directOutBytes: int8('direct_out_bytes').notNull(),
    directOutPackets: int8('direct_out_packets').notNull(),
    directInBytes: int8('direct_in_bytes').notNull(),
    directInPackets: int8('direct_in_packets').notNull(),
    gatewayOutBytes: int8('gateway_out_bytes').notNull(),
    gatewayOutPackets: int8('gateway_out_packets').notNull(),
    gatewayInBytes: int8('gateway_in_bytes').notNull(),
    gatewayInPackets: int8('gateway_in_packets').notNull(),
  },
  (t) => [primaryKey({ columns: [t.series, t.sequence] })],
)

/** What money is asked for. */
export type RateKind = 'fee' | 'cpu' | 'memory' | 'disk' | 'transfer'

export const plans = pgTable('plans', {
  name: text('name').primaryKey(),
  charged: boolean('charged').notNull(),
  machinesMost: integer('machines_most'),
  cpusMost: integer('cpus_most'),
  memoryBytesMost: int8('memory_bytes_most'),
  diskBytesMost: int8('disk_bytes_most'),
  createdAt: time('created_at').notNull().defaultNow(),
})

export const rates = pgTable('rates', {
  id: identity(),
  plan: text('plan').notNull(),
  kind: text('kind').$type<RateKind>().notNull(),
  micros: int8('micros').notNull(),
  included: int8('included').notNull().default(0),
  effective: tstzrange('effective').notNull(),
})

export const accountPlans = pgTable('account_plans', {
  id: identity(),
  accountId: integer('account_id'),
  plan: text('plan').notNull(),
  effective: tstzrange('effective').notNull(),
})

const usedOf = {
  cpu: numeric('cpu').notNull().default('0'),
  memory: numeric('memory').notNull().default('0'),
  disk: numeric('disk').notNull().default('0'),
  checkpoints: numeric('checkpoints').notNull().default('0'),
  direct: numeric('direct').notNull().default('0'),
  gateway: numeric('gateway').notNull().default('0'),
}

export const usageDays = pgTable(
  'usage_days',
  {
    accountId: integer('account_id').notNull(),
    day: date('day').notNull(),
    machineId: integer('machine_id').notNull(),
    ...usedOf,
  },
  (t) => [primaryKey({ columns: [t.accountId, t.day, t.machineId] })],
)

export const usageMachineMonths = pgTable(
  'usage_machine_months',
  {
    accountId: integer('account_id').notNull(),
    month: date('month').notNull(),
    machineId: integer('machine_id').notNull(),
    ...usedOf,
  },
  (t) => [primaryKey({ columns: [t.accountId, t.month, t.machineId] })],
)

export const usageAccountDays = pgTable(
  'usage_account_days',
  { accountId: integer('account_id').notNull(), day: date('day').notNull(), ...usedOf },
  (t) => [primaryKey({ columns: [t.accountId, t.day] })],
)

export const lateUsage = pgTable(
  'late_usage',
  {
    accountId: integer('account_id').notNull(),
    month: date('month').notNull(),
    at: time('at').notNull(),
  },
  (t) => [primaryKey({ columns: [t.accountId, t.month] })],
)

export const credits = pgTable('credits', {
  id: identity(),
  accountId: integer('account_id').notNull(),
  micros: int8('micros').notNull(),
  reason: text('reason').notNull(),
  grantedBy: integer('granted_by'),
  grantedAt: time('granted_at').notNull().defaultNow(),
})

export const invoiceCounter = pgTable('invoice_counter', {
  onlyOne: boolean('only_one').primaryKey().default(true),
  last: integer('last').notNull(),
})

export const invoices = pgTable('invoices', {
  number: integer('number').primaryKey(),
  accountId: integer('account_id').notNull(),
  month: date('month').notNull(),
  closedAt: time('closed_at').notNull(),
  totalMicros: int8('total_micros').notNull(),
  seller: jsonb('seller').$type<Party>(),
  buyer: jsonb('buyer').$type<Buyer>(),
  /** by the machine's number */
  names: jsonb('names').$type<Record<string, string>>().notNull().default({}),
})

export type InvoiceLineKind = RateKind | 'credit' | 'carried' | 'rounding'

export const invoiceLines = pgTable(
  'invoice_lines',
  {
    invoice: integer('invoice').notNull(),
    position: integer('position').notNull(),
    kind: text('kind').$type<InvoiceLineKind>().notNull(),
    class: text('class').notNull().default(''),
    month: date('month').notNull(),
    plan: text('plan'),
    rateId: integer('rate_id'),
    quantity: numeric('quantity').notNull().default('0'),
    included: numeric('included').notNull().default('0'),
    machines: jsonb('machines').$type<[number, string][]>().notNull().default([]),
    days: jsonb('days').$type<[string, string][]>().notNull().default([]),
    creditId: integer('credit_id'),
    amountMicros: int8('amount_micros').notNull(),
  },
  (t) => [primaryKey({ columns: [t.invoice, t.position] })],
)

export const invoiceRuns = pgTable('invoice_runs', {
  month: date('month').primaryKey(),
  startedAt: time('started_at').notNull(),
  finishedAt: time('finished_at'),
})

export const billingClock = pgTable('billing_clock', {
  one: boolean('one').primaryKey().default(true),
  lastRoundAt: time('last_round_at'),
  waitsSince: time('waits_since'),
  waitsBecause: text('waits_because'),
  waitsFrom: date('waits_from'),
  waitsTo: date('waits_to'),
  overMonth: date('over_month'),
})

export const billingFailures = pgTable(
  'billing_failures',
  {
    accountId: integer('account_id').notNull(),
    task: text('task').$type<'invoice' | 'limit'>().notNull(),
    month: date('month').notNull(),
    attempts: integer('attempts').notNull().default(1),
    problem: text('problem').notNull(),
    firstAt: time('first_at').notNull(),
    lastAt: time('last_at').notNull(),
    nextAttemptAt: time('next_attempt_at').notNull(),
  },
  (t) => [primaryKey({ columns: [t.accountId, t.task, t.month] })],
)

export const spendLimits = pgTable(
  'spend_limits',
  {
    accountId: integer('account_id').notNull(),
    whose: text('whose').$type<'own' | 'operator'>().notNull(),
    micros: int8('micros').notNull(),
    hard: boolean('hard').notNull(),
    setAt: time('set_at').notNull().defaultNow(),
  },
  (t) => [primaryKey({ columns: [t.accountId, t.whose] })],
)

export const limitNotices = pgTable(
  'limit_notices',
  {
    accountId: integer('account_id').notNull(),
    whose: text('whose').$type<'own' | 'operator'>().notNull(),
    month: date('month').notNull(),
    percent: integer('percent').notNull(),
    micros: int8('micros').notNull(),
    at: time('at').notNull(),
  },
  (t) => [primaryKey({ columns: [t.accountId, t.whose, t.month, t.percent, t.micros] })],
)

export const notices = pgTable('notices', {
  id: identity(),
  accountId: integer('account_id').notNull(),
  subject: text('subject').notNull(),
  body: text('body').notNull(),
  at: time('at').notNull().defaultNow(),
  readAt: time('read_at'),
})

/** Partitioned by time; rows are written by add_load() alone. */
export const loadSamples = pgTable(
  'load_samples',
  {
    machineId: integer('machine_id').notNull(),
    at: time('at').notNull(),
    ms: integer('ms').notNull(),
    cpus: integer('cpus').notNull(),
    cpuMs: integer('cpu_ms').notNull(),
    memoryLimitBytes: int8('memory_limit_bytes').notNull(),
    memoryHeldBytes: int8('memory_held_bytes').notNull(),
    memoryUsedBytes: int8('memory_used_bytes'),
    diskMs: integer('disk_ms'),
    diskReadBytes: int8('disk_read_bytes'),
    diskWrittenBytes: int8('disk_written_bytes'),
    networkMs: integer('network_ms'),
    networkOutBytes: int8('network_out_bytes'),
    networkInBytes: int8('network_in_bytes'),
    filesystemUsedBytes: int8('filesystem_used_bytes'),
    filesystemBytes: int8('filesystem_bytes'),
  },
  (t) => [primaryKey({ columns: [t.machineId, t.at] })],
)

export const loadSums = pgTable(
  'load_sums',
  {
    machineId: integer('machine_id').notNull(),
    stepSeconds: integer('step_seconds').notNull(),
    at: time('at').notNull(),
    samples: integer('samples').notNull(),
    ms: int8('ms').notNull(),
    cpus: integer('cpus').notNull(),
    cpuMs: int8('cpu_ms').notNull(),
    cpuMost: real('cpu_most').notNull(),
    memoryLimitBytes: int8('memory_limit_bytes').notNull(),
    memoryHeldSum: int8('memory_held_sum').notNull(),
    memoryHeldMost: int8('memory_held_most').notNull(),
    memoryUsedSamples: integer('memory_used_samples').notNull(),
    memoryUsedSum: int8('memory_used_sum'),
    memoryUsedMost: int8('memory_used_most'),
    diskMs: int8('disk_ms'),
    diskReadBytes: int8('disk_read_bytes'),
    diskReadMost: real('disk_read_most'),
    diskWrittenBytes: int8('disk_written_bytes'),
    diskWrittenMost: real('disk_written_most'),
    networkMs: int8('network_ms'),
    networkOutBytes: int8('network_out_bytes'),
    networkOutMost: real('network_out_most'),
    networkInBytes: int8('network_in_bytes'),
    networkInMost: real('network_in_most'),
    filesystemUsedBytes: int8('filesystem_used_bytes'),
    filesystemBytes: int8('filesystem_bytes'),
  },
  (t) => [primaryKey({ columns: [t.machineId, t.stepSeconds, t.at] })],
)

export type LoadState = 'running' | 'asleep' | 'stopped' | 'failed'

export const loadMarks = pgTable(
  'load_marks',
  {
    machineId: integer('machine_id').notNull(),
    at: time('at').notNull(),
    state: text('state').$type<LoadState>().notNull(),
  },
  (t) => [primaryKey({ columns: [t.machineId, t.at] })],
)

export const stripeModes = pgTable('stripe_modes', {
  livemode: boolean('livemode').primaryKey(),
  installation: uuid('installation').notNull().defaultRandom(),
  since: time('since').notNull().defaultNow(),
})

export const stripeCustomers = pgTable(
  'stripe_customers',
  {
    accountId: integer('account_id').notNull(),
    livemode: boolean('livemode').notNull(),
    customer: text('customer'),
    generation: integer('generation').notNull().default(0),
    email: text('email'),
    method: jsonb('method').$type<StripeMethod>(),
    setupSession: text('setup_session'),
    links: integer('links').notNull().default(0),
    refreshedAt: time('refreshed_at'),
    details: jsonb('details').$type<Pick<Party, 'name' | 'address'>>(),
  },
  (t) => [primaryKey({ columns: [t.accountId, t.livemode] })],
)

/** What is paid with, as people know it; the card's figures are Stripe's alone. */
export type StripeMethod = {
  id: string
  kind: string
  brand: string | null
  last4: string | null
  /** `2027-03` */
  expires: string | null
}

export type StripeStatus = 'waiting' | 'draft' | 'open' | 'paid' | 'void' | 'uncollectible'

export const stripeInvoices = pgTable(
  'stripe_invoices',
  {
    invoice: integer('invoice').notNull(),
    livemode: boolean('livemode').notNull(),
    stripeId: text('stripe_id'),
    status: text('status').$type<StripeStatus>().notNull().default('waiting'),
    generation: integer('generation').notNull().default(0),
    paymentsAsked: integer('payments_asked').notNull().default(0),
    collect: boolean('collect').notNull().default(false),
    wishes: integer('wishes').notNull().default(0),
    paidCents: int8('paid_cents').notNull().default(0),
    refundedCents: int8('refunded_cents').notNull().default(0),
    disputed: boolean('disputed').notNull().default(false),
    lostCents: int8('lost_cents').notNull().default(0),
    carriedCents: int8('carried_cents').notNull().default(0),
    failure: text('failure'),
    url: text('url'),
    problem: text('problem'),
    attempts: integer('attempts').notNull().default(0),
    nextAttemptAt: time('next_attempt_at').notNull().defaultNow(),
    refreshedAt: time('refreshed_at'),
  },
  (t) => [primaryKey({ columns: [t.invoice, t.livemode] })],
)

/** Of whole invoices, otherwise than by Stripe; `undoes` takes another back. Those that stand: the view standing_payments. */
export const notedPayments = pgTable('noted_payments', {
  id: identity(),
  invoice: integer('invoice').notNull(),
  undoes: integer('undoes'),
  paidOn: date('paid_on'),
  note: text('note'),
  notedBy: integer('noted_by').notNull(),
  notedAt: time('noted_at').notNull().defaultNow(),
})

export const stripeLeases = pgTable('stripe_leases', {
  about: text('about').primaryKey(),
  holder: uuid('holder').notNull(),
  until: time('until').notNull(),
})

export const stripeEvents = pgTable('stripe_events', {
  id: text('id').primaryKey(),
  livemode: boolean('livemode').notNull(),
  type: text('type').notNull(),
  object: text('object'),
  paymentIntent: text('payment_intent'),
  receivedAt: time('received_at').notNull().defaultNow(),
  handledAt: time('handled_at'),
  attempts: integer('attempts').notNull().default(0),
  nextAttemptAt: time('next_attempt_at').notNull().defaultNow(),
  problem: text('problem'),
})
