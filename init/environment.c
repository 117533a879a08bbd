#include "environment.h"

#include <string.h>

bool environment_good(const char *assignment, size_t length) {
  size_t at = 0;
  for (; at < length && assignment[at] != '='; at++) {
    char c = assignment[at];
    bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
    if (!letter && (at == 0 || c < '0' || c > '9')) return false;
  }
  if (at == 0 || at == length) return false;
  for (at++; at < length; at++) {
    unsigned char c = (unsigned char)assignment[at];
    if ((c < ' ' && c != '\t') || c == 127) return false;
  }
  return true;
}

bool environment_names(const char *assignment, size_t length, const char *name) {
  size_t size = strlen(name);
  return length > size && memcmp(assignment, name, size) == 0 && assignment[size] == '=';
}

static void quote(struct text *to, const char *assignment, size_t length, bool double_percent) {
  text_add(to, " \"", 2);
  for (size_t i = 0; i < length; i++) {
    char c = assignment[i];
    if (c == '"' || c == '\\') text_add(to, "\\", 1);
    if (c == '%' && double_percent) text_add(to, "%", 1);
    text_add(to, &c, 1);
  }
  text_add(to, "\"", 1);
}

/* OpenSSH's argv_split() (misc.c) knows \" and \\ inside double quotes and expands nothing. */
void environment_for_sshd(struct text *to, const char *assignment, size_t length) {
  quote(to, assignment, length, false);
}

/* systemd.syntax(7): double quotes with C escapes; systemd-system.conf(5): specifiers. */
void environment_for_systemd(struct text *to, const char *assignment, size_t length) {
  quote(to, assignment, length, true);
}
