#ifndef BERTH_HOLD_START_H
#define BERTH_HOLD_START_H
#include "hold_session.h"

enum { HOLD_FAILED = -1, HOLD_TAKEN = -2 };

/*
 * Starts a session: a holder process that is nobody's child and in no terminal, and the program under it. Returns a
 * connection to the holder, which it has had since before the program ran, so that even the shortest one can be
 * followed. HOLD_TAKEN when there is a running session of that name, HOLD_FAILED with a complaint on standard error.
 */
int hold_start(const struct hold_options *options);

#endif
