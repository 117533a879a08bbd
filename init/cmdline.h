#ifndef BERTH_CMDLINE_H
#define BERTH_CMDLINE_H
#include <stdbool.h>
#include <stddef.h>

/*
 * Copies the value of name= from a kernel command line. As in the kernel, the last one counts, and double quotes
 * hold a value with spaces together. False when it is missing or does not fit.
 */
bool cmdline_value(const char *line, const char *name, char *value, size_t capacity);

#endif
