#ifndef BERTH_REPORT_H
#define BERTH_REPORT_H
#include <stdbool.h>

#include "frame.h"

/* Adds the readings of a REPORT: CPU, memory, load, listening ports, network card, disk, processes. */
void report_write(struct frame_writer *writer);

/* True when something listens on that TCP port, at any address. */
bool report_listens(unsigned int port);

#endif
