#ifndef BERTH_IP_H
#define BERTH_IP_H
/*
 * The kernel's ip= parameter, which Debian's kernel cannot read itself (no CONFIG_IP_PNP).
 * ip=<client>:<server>:<gateway>:<netmask>:<hostname>:<device>:<autoconf>:<dns0>:<dns1>:<ntp0>, each may be empty;
 * see Documentation/admin-guide/nfs/nfsroot.rst. Two differences: an address is four decimal numbers and nothing
 * else, and ntp0 may be a host name, because Berth's time server may be one.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum ip_mode {
  IP_STATIC, /* the addresses given, no autoconfiguration */
  IP_OFF,    /* off, none without an address: the network is left alone */
};

struct ip_settings {
  enum ip_mode mode;
  /* host byte order; 0 where empty. Without a netmask the address class decides, as in the kernel. */
  uint32_t client;
  uint32_t server;
  uint32_t gateway;
  uint32_t netmask;
  uint32_t dns[2];
  char hostname[65];
  char device[16]; /* empty: the first network card */
  char ntp[254];
};

/* Reads the value of ip=. False, with a sentence for people in reason, when it cannot be carried out. */
bool ip_parse(const char *value, struct ip_settings *settings, char *reason, size_t capacity);

/* Writes a.b.c.d; buffer has room for 16. */
const char *ip_text(uint32_t address, char *buffer);

#endif
