import type { Logger } from 'pino'
import type { HypervisorDriver } from '../hypervisor/driver.ts'
import type { Images } from '../images/images.ts'
import type { Keeper } from '../memory/keeper.ts'
import type { Meter } from '../meter/meter.ts'
import type { Network } from '../network/types.ts'
import type { Checkpoints } from '../storage/checkpoints.ts'
import type { Store } from '../storage/store.ts'
import type { CheckpointRows } from './checkpoint-rows.ts'
import type { Outbox } from './observed.ts'
import type { Rows } from './rows.ts'
import type { Slots } from './slots.ts'
import type { GuestNetwork } from './specification.ts'
import type { Templates } from './templates.ts'

/** What every machine of a server works with. */
export type World = {
  readonly driver: HypervisorDriver
  readonly store: Store
  readonly checkpoints: Checkpoints
  /** disks made of images in registries */
  readonly images: Images
  /** undefined: all machines boot */
  readonly templates?: Pick<Templates, 'find' | 'want' | 'distrust'> | undefined
  readonly network: Network
  readonly rows: Rows
  readonly checkpointRows: CheckpointRows
  readonly outbox: Outbox
  /** what its owner pays for */
  readonly meter: Pick<Meter, 'note' | 'goOn' | 'start'>
  readonly slots: Slots
  /** places of those that wake, who wait for nobody that boots */
  readonly wakes: Slots
  /** places of those that are being put to sleep: each writes its memory as fast as the disk takes it */
  readonly sleeps: Slots
  /** finds memory for those that wake */
  readonly room: Keeper['room']
  /** hears of those that could not be put to sleep */
  readonly couldNotSleep?: Keeper['couldNotSleep']
  readonly guest: GuestNetwork
  /** what a single machine may have */
  readonly memoryBytes: number
  readonly log: Logger
  /** the gateway's public key as an authorized_keys line; undefined until a gateway has run */
  gatewayKey(): string | undefined
  /** ends all waiting; hypervisors are let go of */
  readonly signal: AbortSignal
}
