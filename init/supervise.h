#ifndef BERTH_SUPERVISE_H
#define BERTH_SUPERVISE_H
/*
 * The process that keeps the platform's sshd and the agent alive, whatever becomes of the image's init. It outlives
 * systemd's own clean-up because its argv[0] begins with `@`.
 */
#include "agent.h"

/*
 * Starts the supervisor as a child of the caller and hands it the agent's channel. Returns its pid, or -1 with errno.
 */
int supervise_start(struct agent *agent);

/* The supervisor's process: first agent's arguments as supervise_start passes them. */
_Noreturn void supervise_run(const char *listener, const char *fd, const char *rest, const char *stage);

#endif
