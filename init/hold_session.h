#ifndef BERTH_HOLD_SESSION_H
#define BERTH_HOLD_SESSION_H
#include <stdbool.h>

#include "hold_wire.h"

struct hold_options {
  const char *name;
  bool terminal;
  struct hold_size size;
  char *const *command; /* NULL: a login shell */
};

/*
 * Makes this process the session's holder: starts the program and serves whoever connects to its socket, until the
 * program has ended and everybody was told. The first client is connected already. Closes every other descriptor.
 */
_Noreturn void hold_session_run(const struct hold_options *options, int socket_fd, int first_client);

#endif
