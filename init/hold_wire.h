#ifndef BERTH_HOLD_WIRE_H
#define BERTH_HOLD_WIRE_H
/*
 * exe-hold's files and the messages on them. A running session is a holder process and its socket
 * DIRECTORY/NAME.sock; an ended one is a file DIRECTORY/NAME.ended: struct hold_info, then the output that was kept.
 * DIRECTORY is /exe/run/hold/<uid>, mode 0700, in memory; EXE_HOLD_DIRECTORY replaces it.
 *
 * A message is struct hold_head and that many bytes. Both sides are the same program on the same machine, so what
 * goes over is plain structs.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum {
  HOLD_NAME_MOST = 64,
  HOLD_COMMAND_MOST = 400,
  HOLD_PAYLOAD_MOST = 16 * 1024,
  HOLD_SESSIONS_MOST = 64, /* running ones of one user; as many ended ones are remembered */
  HOLD_CLIENTS_MOST = 16,  /* of one session */
};

enum hold_message {
  /* from the client */
  HOLD_ATTACH = 1, /* struct hold_size: replay, output, input */
  HOLD_FOLLOW,     /* output from the beginning of what is kept, until it ends */
  HOLD_LOGS,       /* the same, but only what there is */
  HOLD_WAIT,       /* only the end */
  HOLD_STATUS,
  HOLD_INPUT,
  HOLD_RESIZE,  /* struct hold_size */
  HOLD_KILL,    /* int signal; 0: the session's usual one */
  HOLD_RELEASE, /* an ended session gives its name away */
  /* from the holder */
  HOLD_OUTPUT = 64,
  HOLD_INFO,  /* struct hold_info; the answer to STATUS, KILL and RELEASE, and the last message of the others */
  HOLD_ERROR, /* a sentence */
};

struct hold_head {
  uint32_t type;
  uint32_t length;
};

struct hold_size {
  uint16_t columns;
  uint16_t rows;
};

struct hold_info {
  uint32_t magic;
  uint8_t terminal;
  uint8_t running;
  int32_t pid;
  int32_t exit_code; /* when it ended by itself */
  int32_t signal;    /* when a signal ended it */
  uint32_t attached;
  uint64_t started_at_ms; /* since 1970 */
  uint64_t ended_at_ms;
  uint64_t output_bytes; /* ever written; what is kept is less */
  char name[HOLD_NAME_MOST + 1];
  char command[HOLD_COMMAND_MOST + 1];
};

enum { HOLD_MAGIC = 0x62686c31 };

/* True when a session may be called that: letters, digits, . _ -, not beginning with . or - */
bool hold_name_good(const char *name);

/* The user's directory, made when it is missing. 0, or -1 with a complaint on standard error. */
int hold_directory(char *path, size_t capacity);

/* DIRECTORY/NAME.suffix; 0, or -1 when it is too long. */
int hold_path(char *path, size_t capacity, const char *name, const char *suffix);

/* Connects to a running session's holder. A descriptor, or -1: there is none. */
int hold_connect(const char *name);

/* Blocking, whole messages. 0, or -1. */
int hold_send(int fd, uint32_t type, const void *payload, size_t length);
int hold_receive(int fd, struct hold_head *head, void *payload, size_t capacity);

/* Exit status as a shell would put it. */
int hold_exit_status(const struct hold_info *info);

#endif
