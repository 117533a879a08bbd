#ifndef BERTH_REPORT_H
#define BERTH_REPORT_H
#include <stdint.h>

#include "frame.h"

/* Adds the readings of a REPORT: CPU, memory, load, listening ports, network card, disk, processes. */
void report_write(struct frame_writer *writer);

/* Identifies the socket that listens on that TCP port (its inode), whatever the address; 0 when none does. */
uint64_t report_listener(unsigned int port);

#endif
