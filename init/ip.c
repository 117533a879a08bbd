#include "ip.h"

#include <stdio.h>
#include <string.h>

enum { FIELDS = 10 };

struct span {
  const char *at;
  size_t length;
};

static bool span_is(struct span span, const char *word) {
  return span.length == strlen(word) && memcmp(span.at, word, span.length) == 0;
}

static bool parse_address(struct span span, uint32_t *address) {
  uint32_t value = 0;
  size_t at = 0;
  for (int part = 0; part < 4; part++) {
    if (part > 0 && (at >= span.length || span.at[at++] != '.')) return false;
    unsigned int number = 0;
    size_t digits = 0;
    while (at < span.length && span.at[at] >= '0' && span.at[at] <= '9' && digits < 4) {
      number = number * 10 + (unsigned int)(span.at[at++] - '0');
      digits++;
    }
    if (digits == 0 || digits > 3 || number > 255) return false;
    value = value << 8 | number;
  }
  *address = value;
  return at == span.length;
}

/* Letters, digits, hyphen and dot; for a device also what kernel names hold. */
static bool copy_name(struct span span, char *to, size_t capacity, const char *also) {
  if (span.length >= capacity) return false;
  for (size_t i = 0; i < span.length; i++) {
    char c = span.at[i];
    bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
    if (!letter && (c == 0 || !strchr(also, c))) return false;
  }
  memcpy(to, span.at, span.length);
  to[span.length] = 0;
  return true;
}

static uint32_t class_mask(uint32_t address) {
  if ((address >> 31) == 0) return 0xff000000U;
  if ((address >> 30) == 2) return 0xffff0000U;
  return 0xffffff00U;
}

static bool refuse(char *reason, size_t capacity, const char *what, struct span span) {
  int shown = span.length > 60 ? 60 : (int)span.length;
  snprintf(reason, capacity, "ip=: %s \"%.*s\"", what, shown, span.at);
  return false;
}

/* Every protocol that the kernel knows by name; none of them is offered to a machine. */
static bool is_autoconf(struct span span) {
  static const char *const names[] = {"on", "any", "dhcp", "bootp", "rarp", "both"};
  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
    if (span_is(span, names[i])) return true;
  return span.length > 5 && memcmp(span.at, "dhcp,", 5) == 0;
}

bool ip_parse(const char *value, struct ip_settings *settings, char *reason, size_t capacity) {
  struct span field[FIELDS] = {{0}};
  int count = 0;
  memset(settings, 0, sizeof *settings);
  for (const char *at = value;;) {
    size_t length = strcspn(at, ":");
    if (count == FIELDS) return refuse(reason, capacity, "more than ten fields, beginning with", (struct span){at, strlen(at)});
    field[count++] = (struct span){at, length};
    if (at[length] == 0) break;
    at += length + 1;
  }
  for (int i = count; i < FIELDS; i++) field[i] = (struct span){"", 0};

  if (count == 1) {
    if (span_is(field[0], "off") || span_is(field[0], "none")) {
      settings->mode = IP_OFF;
      return true;
    }
    if (field[0].length == 0 || is_autoconf(field[0]))
      return refuse(reason, capacity, "there is no autoconfiguration here, so no", field[0]);
  }
  struct span autoconf = field[6];
  if (autoconf.length > 0 && !span_is(autoconf, "off") && !span_is(autoconf, "none"))
    return refuse(reason, capacity, is_autoconf(autoconf) ? "there is no autoconfiguration here, so no" : "no such protocol:",
                  autoconf);

  static const char *const names[] = {"client", "server", "gateway", "netmask"};
  uint32_t *const addresses[] = {&settings->client, &settings->server, &settings->gateway, &settings->netmask};
  for (size_t i = 0; i < 4; i++) {
    char what[48];
    snprintf(what, sizeof what, "the %s is no address:", names[i]);
    if (field[i].length > 0 && !parse_address(field[i], addresses[i])) return refuse(reason, capacity, what, field[i]);
  }
  for (size_t i = 0; i < 2; i++)
    if (field[7 + i].length > 0 && !parse_address(field[7 + i], &settings->dns[i]))
      return refuse(reason, capacity, "the name server is no address:", field[7 + i]);
  if (!copy_name(field[4], settings->hostname, sizeof settings->hostname, "-."))
    return refuse(reason, capacity, "no host name:", field[4]);
  if (!copy_name(field[5], settings->device, sizeof settings->device, "-._@"))
    return refuse(reason, capacity, "no network device:", field[5]);
  if (!copy_name(field[9], settings->ntp, sizeof settings->ntp, "-."))
    return refuse(reason, capacity, "no time server:", field[9]);

  if (settings->client == 0) {
    if (autoconf.length > 0) {
      settings->mode = IP_OFF;
      return true;
    }
    return refuse(reason, capacity, "there is no client address in", (struct span){value, strlen(value)});
  }
  if (settings->netmask == 0 && field[3].length == 0) settings->netmask = class_mask(settings->client);
  uint32_t host = ~settings->netmask;
  if ((host & (host + 1)) != 0) return refuse(reason, capacity, "the netmask has holes:", field[3]);
  settings->mode = IP_STATIC;
  return true;
}

const char *ip_text(uint32_t address, char *buffer) {
  snprintf(buffer, 16, "%u.%u.%u.%u", address >> 24, address >> 16 & 255, address >> 8 & 255, address & 255);
  return buffer;
}
