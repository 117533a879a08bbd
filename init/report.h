#ifndef BERTH_REPORT_H
#define BERTH_REPORT_H
#include <stddef.h>
#include <stdint.h>

#include "frame.h"

/* Adds the readings of a REPORT: CPU, memory, load, listening ports, network card, disk, processes. */
void report_write(struct frame_writer *writer);

enum { LISTENERS_MOST = 16 };

/* Sockets that listen, by their inodes. */
struct listeners {
  uint64_t inodes[LISTENERS_MOST];
  size_t count;
};

/* Those on that TCP port, whatever the address. */
void report_listeners(unsigned int port, struct listeners *found);

#endif
