#ifndef BERTH_PROCESSORS_H
#define BERTH_PROCESSORS_H
#include <stdint.h>

/*
 * Takes every processor into use that the kernel knows of and nobody uses: it leaves those that are added while it runs
 * to whoever is its userspace. Memory it takes by itself. See docs.kernel.org/core-api/cpu_hotplug.html.
 */
void processors_online(void);

/* That programs run on. */
uint64_t processors_count(void);

#endif
