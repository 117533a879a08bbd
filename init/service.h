#ifndef BERTH_SERVICE_H
#define BERTH_SERVICE_H
/*
 * What a container of the machine's image would run, where exe-init stays PID 1: started once when the machine boots,
 * again when it fails, and not when it ends well. What it prints is on the machine's console.
 */
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "frame.h"

/* Keeps what an IDENTIFY says of it, in memory, for the next boot's PID 1 to find. 0, or -1 with errno. */
int service_keep(const struct frame *frame);

/* Reads what was kept; without a service nothing below does anything. */
void service_load(void);

/* Starts it when it is due. Returns in how many milliseconds to look again; 0: nothing is due. */
unsigned int service_run(void);

/* True when the child that ended was the service's. */
bool service_ended(pid_t pid, int status);

#endif
