/**
 * What the host and a machine's agent say to each other. Numbers are those of `init/protocol.h`.
 */
export const messageType = {
  hello: 1,
  ping: 2,
  identify: 3,
  keys: 4,
  freeze: 5,
  thaw: 6,
  grow: 7,
  report: 8,
  powerOff: 9,
  reboot: 10,
  online: 11,
  ok: 64,
  error: 65,
  born: 128,
  stage: 129,
  fatal: 130,
  powerOffBegun: 131,
} as const

export const fieldTag = {
  nonce: 1,
  version: 2,
  bootId: 3,
  kernel: 4,
  stage: 5,
  identified: 6,
  uptimeMs: 7,
  message: 8,
  hostname: 16,
  loginUser: 17,
  authorizedKey: 18,
  environment: 19,
  hostKey: 20,
  userAuthority: 21,
  clockMs: 22,
  entropy: 23,
  machineId: 24,
  address: 25,
  commandLine: 26,
  loginUid: 27,
  serviceArgument: 28,
  serviceUid: 29,
  serviceGid: 30,
  serviceDirectory: 31,
  deadlineMs: 32,
  sizeBytes: 33,
  limitMs: 34,
  cpuBusyMs: 48,
  cpuCount: 49,
  memoryTotalBytes: 50,
  memoryAvailableBytes: 51,
  load1Milli: 52,
  listeningPort: 53,
  txBytes: 54,
  txPackets: 55,
  rxBytes: 56,
  rxPackets: 57,
  diskTotalBytes: 58,
  diskFreeBytes: 59,
  processCount: 60,
  sshProcessCount: 61,
} as const

export const protocolVersion = 1

/** How far a machine has come; in this order. `running` is said by the image's init having been started. */
export const bootStages = ['kernel', 'modules', 'network', 'root', 'tools', 'identity', 'sshd', 'init'] as const
export type BootStage = (typeof bootStages)[number]

/** Who a machine is. Everything of it lives in the machine's memory and is sent again after every boot and restore. */
export type MachineIdentity = {
  /** the machine's name; a host name label */
  hostname: string
  /** whom sessions are for; made on the machine's disk when the image has no such user, unless it is `root` */
  loginUser: string
  /** lines as in authorized_keys, valid for every user of the machine */
  authorizedKeys: readonly string[]
  /** see `environmentProblem`; seen by every session and every service */
  environment: Readonly<Record<string, string>>
  /** what runs where the image has no init of its own; see init/service.h */
  service?: { arguments: readonly string[]; uid: number; gid: number; workingDirectory: string }
  /** the machine's ed25519 host key, private, OpenSSH's format */
  hostKey: string
  /** public keys of authorities whose user certificates the machine takes (sshd's TrustedUserCAKeys) */
  userAuthorities?: readonly string[]
  /** 32 hexadecimal digits; bound over /etc/machine-id */
  machineId: string
  /** after a restore: the value of the kernel's `ip=`, applied in place of the one the machine was booted with */
  address?: string
  /** after a restore: what /proc/cmdline says from now on */
  commandLine?: string
  /** after it ran as nobody: what its boot id is from now on, as the kernel writes one; its journal begins anew */
  bootId?: string
}

/** What the agent answers to a hello. */
export type AgentHello = {
  version: number
  /** the kernel's boot id: a new one after every boot, the same after a restore; empty until it is `identified` */
  bootId: string
  kernelRelease: string
  stage: BootStage
  /** false: it waits for `identify` before it lets anybody in */
  identified: boolean
  uptimeMs: number
}

/** Absolute readings, taken by the machine itself and therefore only as honest as the machine is. */
export type MachineReport = {
  stage: BootStage
  uptimeMs: number
  /** CPU time spent not idle since boot, all CPUs added up */
  cpuBusyMs: number
  cpuCount: number
  memoryTotalBytes: number
  memoryAvailableBytes: number
  /** one-minute load average */
  load1: number
  /** TCP ports something listens on, at any address but loopback's; ascending */
  listeningPorts: number[]
  txBytes: number
  txPackets: number
  rxBytes: number
  rxPackets: number
  /** of the root filesystem */
  diskTotalBytes: number
  diskFreeBytes: number
  processCount: number
  /** started over SSH, by their environment; no shells that wait for a command, and nothing of the platform's; 0 by older agents */
  sshProcessCount: number
}

export type AgentEvent =
  /** connected and in step with an agent; again after every reconnection and every reboot of the guest */
  | { type: 'hello'; hello: AgentHello }
  /** the connection is gone (VMM ended, or this side is reconnecting) */
  | { type: 'lost' }
  /** a step of the boot is done; `sshd`: the platform's sshd listens */
  | { type: 'stage'; stage: BootStage; uptimeMs: number }
  /** the machine cannot go on and is switching itself off; `reason` is a sentence for people */
  | { type: 'fatal'; reason: string }
  /** an orderly shutdown asked for over this channel has begun */
  | { type: 'poweroff' }
