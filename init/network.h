#ifndef BERTH_NETWORK_H
#define BERTH_NETWORK_H
#include "ip.h"

/*
 * Brings up lo and, with IP_STATIC, the network card: address, netmask, default route. A gateway outside the netmask
 * gets a route of its own first, because Berth's taps are routed. May be called again with other settings (after a
 * restore). 0, or -1 with a sentence in reason.
 */
int network_apply(const struct ip_settings *settings, char *reason, size_t capacity);

#endif
