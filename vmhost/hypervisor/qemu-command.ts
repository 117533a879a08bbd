import { relative } from 'node:path'
import type { Accelerator, MachineSpec } from './driver.ts'

/** Names within a machine's directory. What QEMU makes itself lies in `run/`, the only folder that its user may write. */
export const files = {
  run: 'run',
  qmp: 'run/qmp.sock',
  agent: 'run/agent.sock',
  /** chardev `pipe` wants a pair; nothing is ever sent into the first */
  consoleFifo: 'console',
  /** what a saved guest is unpacked into */
  stateFifo: 'state',
  log: 'qemu.log',
} as const

export type QemuSettings = {
  readonly accelerator: Accelerator
  /** see qemu-state.ts; tests: the newest */
  readonly machineType?: string
  /** descriptor of /dev/vhost-net in the new process; QEMU's user could not open it */
  readonly vhostDescriptor?: number
  /** descriptor of a saved guest to go on with */
  readonly stateDescriptor?: number
}

/**
 * Translation buffer under emulation. The default is a quarter of the guest's memory and at most 1 GiB, all of which
 * gets used; 28 MiB cost a boot of a 512 MiB machine nothing that could be measured (6.6-7.0 s against 6.7-6.8 s with
 * 32 MiB), 24 MiB cost it about a twentieth.
 */
const translationBufferMiB = 28

/**
 * QEMU 7.2's emulation leaves garbage in the flags after an unlocked cmpxchg16b, which Debian 13's kernel uses in every
 * memory allocation: one boot in three ended in a double fault before /init. Without the feature the kernel takes locks.
 */
const emulatedCpu = 'max,-cx16'

/**
 * QEMU's arguments for a machine. Paths are relative to the machine's directory, QEMU's working directory: its user
 * need not be able to walk down to it from the root, so the data directory may lie in /root.
 * @see qemu-system-x86_64(1)
 */
export function qemuArguments(spec: MachineSpec, settings: QemuSettings): string[] {
  const inside = (path: string) => option(relative(spec.directory, path))
  const emulated = settings.accelerator === 'tcg'
  const args = [
    ['-name', `guest=vm${spec.machineId},debug-threads=on`],
    ['-nodefaults'],
    ['-no-user-config'],
    ['-display', 'none'],
    // What no machine uses is left out: less to emulate, less to attack.
    ['-M', `${settings.machineType ?? 'q35'},usb=off,smm=off,vmport=off,sata=off,smbus=off,hpet=off`],
    ['-accel', emulated ? `tcg,thread=multi,tb-size=${translationBufferMiB}` : 'kvm'],
    ['-cpu', emulated ? emulatedCpu : 'host'],
    ['-smp', String(spec.cpus)],
    ['-m', `${spec.memoryBytes / 2 ** 20}M`],
    ['-sandbox', 'on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny'],
    // A guest that switched itself off or panicked is kept, paused, until a vmhost has seen why.
    ['-action', 'shutdown=pause,panic=pause,reboot=reset'],
    ['-chardev', `socket,id=qmp,path=${files.qmp},server=on,wait=off`],
    ['-mon', 'chardev=qmp,mode=control'],
    ['-kernel', inside(spec.kernel)],
    ...(spec.initrd ? [['-initrd', inside(spec.initrd)]] : []),
    ['-append', spec.commandLine],
    ...rootDisk(inside(spec.disk)),
    ...(spec.tools ? toolsDisk(inside(spec.tools)) : []),
    ...(spec.network ? network(spec.network, settings.vhostDescriptor) : []),
    ['-object', 'rng-random,id=rng,filename=/dev/urandom'],
    ['-device', 'virtio-rng-pci,rng=rng'],
    ['-device', 'virtio-balloon-pci,id=balloon,free-page-reporting=on,deflate-on-oom=on'],
    ['-device', 'virtio-serial-pci,id=serial,max_ports=2'],
    ['-chardev', `pipe,id=console,path=${files.consoleFifo}`],
    ['-device', 'virtconsole,chardev=console,bus=serial.0,nr=0'],
    ['-chardev', `socket,id=agent,path=${files.agent},server=on,wait=off`],
    ['-device', 'virtserialport,chardev=agent,name=berth.agent,bus=serial.0,nr=1'],
    ['-device', 'pvpanic-pci'],
    ...(settings.stateDescriptor === undefined ? [] : [['-incoming', `fd:${settings.stateDescriptor}`]]),
  ]
  return args.flat()
}

/** A full store must not look like a broken disk: the guest stands still, people are told, and then it goes on. */
function rootDisk(path: string): string[][] {
  return [
    ['-blockdev', `driver=file,node-name=root-file,filename=${path},aio=threads,discard=unmap`],
    ['-blockdev', 'driver=raw,node-name=root,file=root-file,discard=unmap,detect-zeroes=unmap'],
    ['-device', 'virtio-blk-pci,id=root,drive=root,serial=root,discard=on,write-zeroes=on,werror=stop,rerror=stop'],
  ]
}

function toolsDisk(path: string): string[][] {
  return [
    ['-blockdev', `driver=file,node-name=tools-file,filename=${path},read-only=on`],
    ['-blockdev', 'driver=raw,node-name=tools,file=tools-file,read-only=on'],
    ['-device', 'virtio-blk-pci,id=tools,drive=tools,serial=tools'],
  ]
}

function network(card: { tap: string; mac: string }, vhostDescriptor: number | undefined): string[][] {
  const vhost = vhostDescriptor === undefined ? '' : `,vhost=on,vhostfd=${vhostDescriptor}`
  return [
    ['-netdev', `tap,id=net,ifname=${card.tap},script=no,downscript=no${vhost}`],
    ['-device', `virtio-net-pci,netdev=net,mac=${card.mac},romfile=`],
  ]
}

/** A value within a comma-separated option: a comma is doubled. */
function option(value: string): string {
  return value.replaceAll(',', ',,')
}
