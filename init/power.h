#ifndef BERTH_POWER_H
#define BERTH_POWER_H

#include <stdbool.h>

/*
 * systemd(1), "Signals": SIGRTMIN+4 starts poweroff.target, SIGRTMIN+5 reboot.target. It counts from its own C
 * library's SIGRTMIN, 34; musl's is 35, so the numbers are written out.
 */
enum { SIGNAL_POWEROFF = 38, SIGNAL_REBOOT = 39 };

enum power { POWER_NONE, POWER_OFF, POWER_REBOOT };

/* Writes the disks back, at most five seconds, and switches the machine off or resets it. Does not return. */
_Noreturn void power_now(enum power how);

/* Asks PID 1 for an orderly shutdown: systemd and exe-init by signal, anything else through its poweroff program. */
void power_ask(enum power how);

/* Whether PID 1 is one of these, by what /proc/1/exe and /proc/1/comm say. A package upgrade may have deleted its file. */
bool power_takes_signals(const char *program, const char *name);

#endif
