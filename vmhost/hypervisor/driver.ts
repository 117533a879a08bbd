/**
 * What a hypervisor must be able to do for the rest of the vmhost. QEMU and Cloud Hypervisor take the same seat, so
 * nothing above this folder may know which one runs.
 *
 * A hypervisor process belongs to its machine and not to the vmhost: it runs in a session and under a user of its
 * own, and a vmhost that starts, after a kill -9 of the one before, finds it by `find` and takes it over by `adopt`.
 * It outlives its guest too: a guest that switched itself off or panicked leaves a paused hypervisor behind, so
 * that the reason can still be asked for, however long no vmhost was there to see it happen.
 */

/** Uid and gid of a machine's hypervisor; no passwd entry has them. */
export function hypervisorUid(machineId: number): number {
  if (!Number.isSafeInteger(machineId) || machineId < 1 || machineId > 2_000_000_000) {
    throw new RangeError(`${machineId} is no machine id`)
  }
  return 2_000_000 + machineId
}

/**
 * What a hypervisor may take beside its guest's memory: its heap, threads' stacks, and under emulation the translation
 * buffer. Its limit, and what admission counts for each machine.
 */
export const hypervisorOverheadBytes = 384 * 2 ** 20

export type Accelerator = 'kvm' | 'tcg'

/** How large a machine is. */
export type MachineSize = { readonly cpus: number; readonly memoryBytes: number }

/** Bytes that a guest had read of its disk and written to it, since its hypervisor's process began. */
export type DiskCounters = { readonly readBytes: number; readonly writtenBytes: number }

/** Everything a hypervisor is started with. Paths are absolute; `directory` is the machine's own and its working directory. */
export type MachineSpec = {
  readonly machineId: number
  readonly directory: string
  readonly cpus: number
  /** multiple of 1 MiB */
  readonly memoryBytes: number
  readonly kernel: string
  readonly initrd?: string
  readonly commandLine: string
  /** raw image, owned by the machine's uid: the guest's /dev/vda */
  readonly disk: string
  /** shared, read-only: the guest's /dev/vdb */
  readonly tools?: string
  readonly network?: { readonly tap: string; readonly mac: string }
  /** without `restoreFrom`: what it can be given while it runs, at most; without it as much as it starts with */
  readonly most?: MachineSize | undefined
  /**
   * Directory that `save` of a driver filled: the guest goes on from there instead of booting, under the same kind of
   * hypervisor, and stands still until `resume`. It may have been another machine's: everything else is taken from this
   * specification, which must name the same cpus, memory, kernel and devices.
   */
  readonly restoreFrom?: string
  /** of the hypervisor that filled `restoreFrom`, to which the driver knows no `obstacle`; this driver's own where left out */
  readonly stateVersion?: string
}

/**
 * `shutdown`: the guest switched itself off and the hypervisor waits to be ended; `panicked` likewise; `ioError`: the
 * guest stands still because the host could not carry out its disk I/O, `resume` tries again.
 */
export type GuestState = 'running' | 'paused' | 'shutdown' | 'panicked' | 'ioError'

export type HypervisorEvent =
  | { readonly type: 'panicked' }
  | { readonly type: 'shutdown'; readonly byGuest: boolean }
  | { readonly type: 'reset'; readonly byGuest: boolean }
  /** the guest stands still; `noSpace`: the store, or the filesystem under it, is full */
  | { readonly type: 'ioError'; readonly noSpace: boolean }
  | { readonly type: 'resumed' }
  /** the process is gone, whoever ended it */
  | { readonly type: 'exited'; readonly detail: string }

export type Hypervisor = {
  readonly machineId: number
  readonly pid: number
  /** Where the control channel is to be had, and whose socket that is; see vmhost/guest/channel.ts. */
  readonly agent: { readonly socketPath: string; readonly vsockPort?: number; readonly uid?: number }
  /** FIFO that the guest's console comes out of; what nobody reads in time is dropped by the hypervisor. */
  readonly consolePath: string
  /** As its driver's, of the very process that runs: its binary may have been replaced since it was started. */
  readonly stateVersion: string
  state(): Promise<GuestState>
  /** @returns what ends the subscription; `exited` is always the last event and comes once */
  on(listener: (event: HypervisorEvent) => void): () => void
  /** Has the guest stand still until `resume`; one that has come to its end is left as it is. */
  pause(): Promise<void>
  /** Lets a guest that stands still, after `ioError` too, go on. */
  resume(): Promise<void>
  /** Presses the power button (ACPI); what the guest makes of it is its business. */
  powerButton(): Promise<void>
  /**
   * Writes all of a guest that stands still (memory without its empty pages, processors, devices; not its disk) into
   * `directory`: empty, and root's alone. The kernel has all of it when this returns, and the disk may not:
   * whoever counts on it after a power cut syncs it, and may let the guest go on first. The guest goes on standing still,
   * and `resume` lets it go on whether this succeeded or not.
   * @param compact nobody waits: it may take as much time again to take less space
   * @throws HypervisorError; with an ErrnoException as its cause when the file could not be written, ENOSPC among them
   */
  save(directory: string, options?: { compact?: boolean }): Promise<void>
  /** @param targetBytes memory that the guest shall give back, 0 for none */
  setBalloon(targetBytes: number): Promise<void>
  /** @returns memory that the guest has given back, in bytes */
  balloon(): Promise<number>
  diskCounters(): Promise<DiskCounters>
  /** What its guest has been given: more than it was started with after `resize`. */
  size(): Promise<MachineSize>
  /**
   * Gives a guest that runs more processors and memory, as far as that can be done while it runs: up to `most` of its
   * specification, and as its hypervisor is able to. Nothing is ever taken away, which is for its next start. Its
   * kernel takes the memory into use by itself; its agent has to be told of processors.
   * @returns what it has now
   */
  resize(wanted: MachineSize): Promise<MachineSize>
  /** Tells the guest that its disk, which must have grown already, is this large. */
  diskGrown(sizeBytes: number): Promise<void>
  /**
   * Lets machines that are still coming up have the processors first, or takes that back. Best effort: what the
   * server does not allow is left out.
   */
  yieldToOthers(yields: boolean): Promise<void>
  /** Ends the process in order (disk caches written), by force after `limitMs`. Returns when it is gone. */
  quit(limitMs?: number): Promise<void>
  /** Ends the process by SIGKILL. Returns when it is gone. */
  kill(): Promise<void>
  /** Lets go of it and leaves it running: this vmhost ends. No events after it. */
  release(): void
}

export type HypervisorDriver = {
  readonly name: 'qemu' | 'cloud-hypervisor'
  readonly version: string
  readonly accelerator: Accelerator
  /** What a guest that is saved now needs of whoever restores it: hypervisor, version, kind of machine, processor. */
  readonly stateVersion: string
  /**
   * Why a guest that was saved with this `stateVersion` cannot be restored here now, by this driver's own or another kept
   * program. All of it may be otherwise after an update, or after the next start of the server: the guest is not lost.
   * @returns a sentence for its owner, without a full stop; undefined: it can
   */
  obstacle(stateVersion: string): Promise<string | undefined>
  /**
   * @throws HypervisorError with a sentence when it does not come up; nothing is left running then. `hypervisor.gone`:
   * somebody killed it meanwhile, and another try may do. `hypervisor.unreadable`: what it was to be restored from is
   * proved to be of no use; any other failure says nothing about that
   */
  start(spec: MachineSpec): Promise<Hypervisor>
  /**
   * Takes over the process that runs in this machine's directory; undefined when there is none.
   * @param memoryBytes what its guest was promised, which one that is busy with it is given the time for
   * @param signal ends the wait for one that does not answer, which is left as it is
   * @throws HypervisorError `hypervisor.timeout` when it does not answer in time; it may at another try
   */
  adopt(
    machineId: number,
    directory: string,
    memoryBytes: number,
    signal?: AbortSignal,
  ): Promise<Hypervisor | undefined>
  /** Ends whatever runs in this machine's directory under its uid, answering or not. Returns how many there were. */
  destroy(machineId: number, directory: string): Promise<number>
}

export type HypervisorErrorCode =
  | 'hypervisor.start'
  | 'hypervisor.timeout'
  | 'hypervisor.gone'
  | 'hypervisor.refused'
  /** what a guest was to be restored from is missing or damaged, which no other try will change */
  | 'hypervisor.unreadable'

export class HypervisorError extends Error {
  override readonly name = 'HypervisorError'
  readonly code: HypervisorErrorCode
  constructor(code: HypervisorErrorCode, message: string, options?: ErrorOptions) {
    super(message, options)
    this.code = code
  }
}
