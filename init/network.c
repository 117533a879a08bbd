#include "network.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <net/if.h>
#include <net/route.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base.h"

enum { CARD_LIMIT_MS = 10000, CARD_POLL_MS = 5 };

/* lo is there in every network namespace; anything else that has a MAC is a card. */
static bool first_card(char *name) {
  DIR *directory = opendir("/sys/class/net");
  if (!directory) return false;
  bool found = false;
  for (struct dirent *entry; !found && (entry = readdir(directory));) {
    if (entry->d_name[0] == '.' || strcmp(entry->d_name, "lo") == 0 || strlen(entry->d_name) >= IFNAMSIZ) continue;
    strcpy(name, entry->d_name);
    found = true;
  }
  closedir(directory);
  return found;
}

/* The driver was loaded a moment ago and may still be probing. */
static bool wait_for_card(const char *wanted, char *name) {
  uint64_t until = uptime_ms() + CARD_LIMIT_MS;
  do {
    if (wanted[0]) {
      strcpy(name, wanted);
      if (if_nametoindex(name) > 0) return true;
    } else if (first_card(name)) {
      return true;
    }
    sleep_ms(CARD_POLL_MS);
  } while (uptime_ms() < until);
  return false;
}

static void put_address(struct sockaddr *to, uint32_t address) {
  struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(address)};
  memcpy(to, &in, sizeof in);
}

static int set_address(int fd, const char *card, int request, uint32_t address) {
  struct ifreq ifreq = {0};
  strcpy(ifreq.ifr_name, card);
  put_address(&ifreq.ifr_addr, address);
  return ioctl(fd, request, &ifreq);
}

static int set_up(int fd, const char *card) {
  struct ifreq ifreq = {0};
  strcpy(ifreq.ifr_name, card);
  if (ioctl(fd, SIOCGIFFLAGS, &ifreq) != 0) return -1;
  ifreq.ifr_flags = (short)(ifreq.ifr_flags | IFF_UP);
  return ioctl(fd, SIOCSIFFLAGS, &ifreq);
}

/* A zero destination is the default route, a zero gateway a destination that is reached directly. */
static int add_route(int fd, char *card, uint32_t destination, uint32_t gateway) {
  struct rtentry route = {.rt_flags = RTF_UP, .rt_dev = card};
  put_address(&route.rt_dst, destination);
  put_address(&route.rt_genmask, destination ? 0xffffffffU : 0);
  put_address(&route.rt_gateway, gateway);
  if (destination) route.rt_flags |= RTF_HOST;
  if (gateway) route.rt_flags |= RTF_GATEWAY;
  return ioctl(fd, SIOCADDRT, &route) == 0 || errno == EEXIST ? 0 : -1;
}

int network_apply(const struct ip_settings *settings, char *reason, size_t capacity) {
  int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0) {
    snprintf(reason, capacity, "no network in this kernel: %s", strerror(errno));
    return -1;
  }
  char card[IFNAMSIZ] = "";
  const char *step = NULL;
  char loopback[] = "lo";
  if (set_up(fd, loopback) != 0)
    step = "bring up lo";
  else if (settings->mode == IP_OFF)
    step = NULL;
  else if (!wait_for_card(settings->device, card)) {
    snprintf(reason, capacity, "there is no network card %s", settings->device);
    close(fd);
    return -1;
  } else if (set_address(fd, card, SIOCSIFADDR, settings->client) != 0)
    step = "set the address";
  else if (set_address(fd, card, SIOCSIFNETMASK, settings->netmask) != 0)
    step = "set the netmask";
  else if (set_up(fd, card) != 0)
    step = "bring up the card";
  else if (settings->gateway != 0) {
    bool outside = ((settings->gateway ^ settings->client) & settings->netmask) != 0 || settings->netmask == 0xffffffffU;
    if (outside && add_route(fd, card, settings->gateway, 0) != 0)
      step = "reach the gateway";
    else if (add_route(fd, card, 0, settings->gateway) != 0)
      step = "set the default route";
  }
  if (step) snprintf(reason, capacity, "cannot %s of %s: %s", step, card[0] ? card : "lo", strerror(errno));
  close(fd);
  return step ? -1 : 0;
}
