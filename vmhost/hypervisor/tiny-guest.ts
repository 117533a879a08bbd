import { execFile } from 'node:child_process'
import { chmod, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'

const execFileAsync = promisify(execFile)

/**
 * Guests of a few bytes for the drivers' tests: kernels by the boot protocol's header whose 16-bit set-up code does one
 * thing, or that are entered by the PVH protocol. They are there in a tenth of a second under emulation, where Linux
 * takes several.
 */
export type TinyGuest = 'idle' | 'counts' | 'reads' | 'writes' | 'powersOff' | 'resets' | 'panics'

/** Where the guest that writes keeps the number of the sector that it writes next: what is before it is on its disk. */
export const writesNextAt = 0x20008

/** Finds pvpanic-pci (1b36:0011) on bus 0 and leaves its BAR 0 in eax. */
const findPvpanic = `
    xorl %ecx, %ecx
  1: movl %ecx, %eax
    shll $11, %eax
    orl $0x80000000, %eax
    movl %eax, %ebx
    movw $0xcf8, %dx
    outl %eax, %dx
    movw $0xcfc, %dx
    inl %dx, %eax
    cmpl $0x00111b36, %eax
    je 2f
    incl %ecx
    cmpl $32, %ecx
    jb 1b
    jmp idle
  2: movl %ebx, %eax
    orl $0x10, %eax
    movw $0xcf8, %dx
    outl %eax, %dx
    movw $0xcfc, %dx
    inl %dx, %eax
    andl $0xfffffff0, %eax
`

const behaviour: Record<TinyGuest, string> = {
  idle: '',
  // the firmware counts timer interrupts in its data area
  counts: 'sti',
  // the first sector of its disk, again and again, with the firmware's driver: INT 13h, function 2
  reads:
    '1: movw $0x0201, %ax; movw $1, %cx; movw $0x80, %dx; xorw %bx, %bx; movw $0x2000, %si; movw %si, %es; int $0x13; jmp 1b',
  // its disk from 1 to 512 MiB, 32 KiB at a time, each with the number of its first sector in front; what comes next is in
  // its memory at `writesNextAt`: INT 13h, function 43h (EDD), whose packet is at 2000:0 and buffer at 3000:0
  writes: `
    movw $0x2000, %ax
    movw %ax, %ds
    movw $0x3000, %ax
    movw %ax, %es
    movl $0x00400010, 0
    movl $0x30000000, 4
    movl $2048, 8
    movl $0, 12
  1: movl 8, %eax
    movl %eax, %es:0
    movw $0x4300, %ax
    movw $0x80, %dx
    xorw %si, %si
    int $0x13
    jc 1b
    addl $64, 8
    cmpl $1048576, 8
    jb 1b`,
  // ACPI PM1a control of q35 as SeaBIOS places it: SLP_TYP 0 (S5), SLP_EN
  powersOff: 'movw $0x604, %dx; movw $0x2000, %ax; outw %ax, %dx',
  // reset control register of ICH9
  resets: 'movw $0xcf9, %dx; movb $6, %al; outb %al, %dx',
  // reaches BAR 0 through a 4 GiB segment, reports a panic (bit 0)
  panics: `${findPvpanic}    movl %eax, %esi
    cli
    xorl %eax, %eax
    movw %cs, %ax
    shll $4, %eax
    addl $(gdt - entry), %eax
    movl %eax, %cs:(pointer - entry + 2)
    lgdtl %cs:(pointer - entry)
    movl %cr0, %eax
    orb $1, %al
    movl %eax, %cr0
    movw $8, %bx
    movw %bx, %fs
    andb $0xfe, %al
    movl %eax, %cr0
    movb $1, %fs:(%esi)`,
}

/** @see https://www.kernel.org/doc/html/latest/arch/x86/boot.html */
function source(guest: TinyGuest): string {
  return `
  .code16
  .org 0x1f1
  .byte 1
  .org 0x1fe
  .word 0xaa55
entry:
  jmp start
  .ascii "HdrS"
  .word 0x0202
  .org 0x211
  .byte 1
  .org 0x280
start:
  ${behaviour[guest]}
idle:
  hlt
  jmp idle
  .balign 8
gdt:
  .quad 0
  .quad 0x00cf92000000ffff
pointer:
  .word 15
  .long 0
  .org 0x800
`
}

/** Assembles the guest into `path`, readable for every hypervisor, as a machine with a firmware boots it: QEMU. */
export function makeTinyGuest(path: string, guest: TinyGuest): Promise<void> {
  return assemble(source(guest), path, async (object) => {
    await execFileAsync('objcopy', ['-O', 'binary', '-j', '.text', object, path])
  })
}

/** The same for Cloud Hypervisor, which has no firmware and enters a kernel in 32-bit protected mode. */
export function makeTinyPvhGuest(path: string, guest: keyof typeof pvhBehaviour): Promise<void> {
  return assemble(pvhSource(guest), path, async (object) => {
    await execFileAsync('ld', ['-m', 'elf_x86_64', '-z', 'noexecstack', '-Ttext=0x100000', '-o', path, object])
  })
}

async function assemble(text: string, path: string, link: (object: string) => Promise<void>): Promise<void> {
  const work = await mkdtemp(join(tmpdir(), 'berth-tiny-'))
  try {
    const object = join(work, 'guest.o')
    await writeFile(join(work, 'guest.s'), text)
    await execFileAsync('as', [text.includes('.code16') ? '--32' : '--64', '-o', object, join(work, 'guest.s')])
    await link(object)
    await chmod(path, 0o644)
  } finally {
    await rm(work, { recursive: true })
  }
}

const pvhBehaviour: Record<Exclude<TinyGuest, 'counts' | 'reads' | 'writes'>, string> = {
  idle: '',
  // the sleep control register of its DSDT: SLP_TYP 5, SLP_EN
  powersOff: 'movw $0x600, %dx; movb $0x34, %al; outb %al, %dx',
  // i8042: pulse the reset line
  resets: 'movw $0x64, %dx; movb $0xfe, %al; outb %al, %dx',
  panics: `${findPvpanic}    movb $1, (%eax)`,
}

/** @see https://xenbits.xen.org/docs/unstable/misc/pvh.html, the note XEN_ELFNOTE_PHYS32_ENTRY says where it begins */
function pvhSource(guest: keyof typeof pvhBehaviour): string {
  return `
  .section .note.pvh, "a", @note
  .long 4, 8, 18
  .asciz "Xen"
  .quad _start
  .text
  .code32
  .globl _start
_start:
  ${pvhBehaviour[guest]}
idle:
  hlt
  jmp idle
`
}
