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
 * Starts a session: a holder process that is nobody's child and in no terminal, and the program under it. Returns when
 * its socket can be connected to. 0, or -1 with a complaint on standard error (the name is taken; too many sessions).
 */
int hold_session_start(const struct hold_options *options);

#endif
