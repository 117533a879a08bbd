#ifndef BERTH_PROTOCOL_H
#define BERTH_PROTOCOL_H
/*
 * The control channel between a machine's agent and the host's vmhost. This page is the format; the host's side is
 * vmhost/guest/frames.ts (framing) and vmhost/guest/messages.ts (numbers), and the three change together.
 *
 * Transport: a byte stream. Under QEMU the virtio-serial port named "berth.agent", under Cloud Hypervisor AF_VSOCK
 * port 1024. One host process at a time, there the one that came last.
 *
 * Frame:  COBS(type u8, id u32, fields, crc32 u32) 0x00
 *   All integers are big-endian. crc32 is IEEE 802.3's over everything before it. COBS (Cheshire and Baker 1999)
 *   takes every zero out of a frame, so that the closing zero is the only one and a reader that starts in the
 *   middle, after the other side died half way through a frame, is in step again at the next zero. A sender begins
 *   with a lone zero for that reason. A frame before stuffing is at most FRAME_MOST bytes; a longer or damaged one
 *   is dropped.
 * Field:  tag u8, length u32, bytes.   Texts are UTF-8 without a closing zero, numbers are u64. Unknown tags are
 *   passed over; a tag that may repeat says so.
 *
 * The host sends requests and numbers them (1 and up; 0 is kept for HELLO); the agent answers each with OK or ERROR
 * of the same id, and sends events with id 0. HELLO carries a nonce that its answer repeats: what comes before that
 * answer was meant for an earlier host process. An agent that opens the port says BORN; the host then greets again. A
 * request that comes before HELLO is not taken: BORN bears its id, and the host asks once more after it has greeted.
 *
 * request   fields                                            answer
 * HELLO     NONCE                                             NONCE VERSION BOOT_ID KERNEL STAGE IDENTIFIED UPTIME_MS
 * PING
 * IDENTIFY  HOSTNAME LOGIN_USER AUTHORIZED_KEY* ENVIRONMENT*  LOGIN_UID
 *           HOST_KEY USER_AUTHORITY* CLOCK_MS ENTROPY
 *           MACHINE_ID [ADDRESS] [COMMAND_LINE] [BOOT_ID]
 *           [SERVICE_ARGUMENT* SERVICE_UID SERVICE_GID SERVICE_DIRECTORY]
 * KEYS      AUTHORIZED_KEY*
 * FREEZE    DEADLINE_MS (thaws by itself after it)
 * THAW                                                        DEADLINE_MS (what was left; 0: it had thawed)
 * GROW                                                        SIZE_BYTES
 * ONLINE    (processors were added: they are taken into use)  CPU_COUNT
 * REPORT                                                      STAGE UPTIME_MS and every field from CPU_BUSY_MS on;
 *                                                             LISTENING_PORT*
 * POWEROFF  LIMIT_MS                                          (at once; then the event POWEROFF_BEGUN)
 * REBOOT    LIMIT_MS
 *
 * BOOT_ID is empty until the machine was told who it is: see agent.c. In an IDENTIFY it says that a machine which runs
 * was nobody's before, and is the one that it shows from then on.
 *
 * event          fields
 * BORN           BOOT_ID STAGE
 * STAGE          STAGE UPTIME_MS
 * FATAL          MESSAGE (the machine switches itself off after it)
 * POWEROFF_BEGUN
 */

enum {
  PROTOCOL_VERSION = 1,
  FRAME_MOST = 256 * 1024,
  AGENT_VSOCK_PORT = 1024,
};

#define AGENT_PORT_NAME "berth.agent"

enum message_type {
  MSG_HELLO = 1,
  MSG_PING = 2,
  MSG_IDENTIFY = 3,
  MSG_KEYS = 4,
  MSG_FREEZE = 5,
  MSG_THAW = 6,
  MSG_GROW = 7,
  MSG_REPORT = 8,
  MSG_POWEROFF = 9,
  MSG_REBOOT = 10,
  MSG_ONLINE = 11,
  MSG_OK = 64,
  MSG_ERROR = 65,
  MSG_BORN = 128,
  MSG_STAGE = 129,
  MSG_FATAL = 130,
  MSG_POWEROFF_BEGUN = 131,
};

enum field_tag {
  TAG_NONCE = 1,
  TAG_VERSION = 2,
  TAG_BOOT_ID = 3,
  TAG_KERNEL = 4,
  TAG_STAGE = 5,
  TAG_IDENTIFIED = 6,
  TAG_UPTIME_MS = 7,
  TAG_MESSAGE = 8,
  TAG_HOSTNAME = 16,
  TAG_LOGIN_USER = 17,
  TAG_AUTHORIZED_KEY = 18, /* repeats; one authorized_keys line each */
  TAG_ENVIRONMENT = 19,    /* repeats; NAME=value */
  TAG_HOST_KEY = 20,       /* private, OpenSSH's format */
  TAG_USER_AUTHORITY = 21, /* repeats */
  TAG_CLOCK_MS = 22,       /* since 1970, UTC */
  TAG_ENTROPY = 23,
  TAG_MACHINE_ID = 24,   /* 32 hexadecimal digits */
  TAG_ADDRESS = 25,      /* the value of the kernel's ip= */
  TAG_COMMAND_LINE = 26, /* what /proc/cmdline says after a restore */
  TAG_LOGIN_UID = 27,
  TAG_SERVICE_ARGUMENT = 28, /* repeats; what an image without an init runs: see service.h */
  TAG_SERVICE_UID = 29,
  TAG_SERVICE_GID = 30,
  TAG_SERVICE_DIRECTORY = 31,
  TAG_DEADLINE_MS = 32,
  TAG_SIZE_BYTES = 33,
  TAG_LIMIT_MS = 34,
  TAG_CPU_BUSY_MS = 48,
  TAG_CPU_COUNT = 49,
  TAG_MEMORY_TOTAL_BYTES = 50,
  TAG_MEMORY_AVAILABLE_BYTES = 51,
  TAG_LOAD1_MILLI = 52,
  TAG_LISTENING_PORT = 53, /* repeats */
  TAG_TX_BYTES = 54,
  TAG_TX_PACKETS = 55,
  TAG_RX_BYTES = 56,
  TAG_RX_PACKETS = 57,
  TAG_DISK_TOTAL_BYTES = 58,
  TAG_DISK_FREE_BYTES = 59,
  TAG_PROCESS_COUNT = 60,
  TAG_SSH_PROCESS_COUNT = 61, /* started over SSH; see report.c */
};

#endif
