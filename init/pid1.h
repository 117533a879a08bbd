#ifndef BERTH_PID1_H
#define BERTH_PID1_H
#include <sys/types.h>

/*
 * PID 1 of a machine whose image brings no init: reaps, starts the supervisor again should it die, and shuts down in
 * order. Signals mean what they mean to systemd: TERM, PWR, RTMIN+4 and USR2 switch off, INT (Ctrl-Alt-Del),
 * RTMIN+5 restart; every other is ignored, because there is no main process to forward it to.
 */
_Noreturn void pid1_run(pid_t supervisor);

#endif
