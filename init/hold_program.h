#ifndef BERTH_HOLD_PROGRAM_H
#define BERTH_HOLD_PROGRAM_H
/* The program of a session, under a terminal of its own or with its output in a pipe. */
#include <sys/types.h>

#include "hold_session.h"

/* Starts it. Our end of the terminal or of the pipe, which does not block, and its process; -1 when it cannot start. */
int hold_program_start(const struct hold_options *options, pid_t *pid);

#endif
