#include "cmdline.h"

#include <string.h>

bool cmdline_value(const char *line, const char *name, char *value, size_t capacity) {
  size_t name_length = strlen(name);
  bool found = false;
  for (const char *at = line; *at;) {
    while (*at == ' ' || *at == '\t' || *at == '\n') at++;
    const char *start = at;
    bool quoted = false;
    for (; *at && (quoted || (*at != ' ' && *at != '\t' && *at != '\n')); at++)
      if (*at == '"') quoted = !quoted;
    size_t length = (size_t)(at - start);
    if (length > 0 && *start == '"') {
      start++;
      length--;
      if (length > 0 && start[length - 1] == '"') length--;
    }
    if (length <= name_length || memcmp(start, name, name_length) != 0 || start[name_length] != '=') continue;
    const char *from = start + name_length + 1;
    size_t size = length - name_length - 1;
    if (size > 0 && *from == '"') {
      from++;
      size--;
      if (size > 0 && from[size - 1] == '"') size--;
    }
    found = size < capacity;
    if (!found) continue;
    memcpy(value, from, size);
    value[size] = 0;
  }
  return found;
}
