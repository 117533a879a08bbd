#ifndef BERTH_ENVIRONMENT_H
#define BERTH_ENVIRONMENT_H
/*
 * A machine's variables, as two programs want them written: sshd's SetEnv, for every session whether login or not,
 * and systemd's DefaultEnvironment, for every service. Pure. vmhost/guest/environment.ts refuses what cannot be
 * written; the same is refused here, because a line break would become a line of its own in both files.
 */
#include <stdbool.h>
#include <stddef.h>

#include "base.h"

/* True when NAME=value has a POSIX name and no control character but tab. */
bool environment_good(const char *assignment, size_t length);

/* Appends ` "NAME=value"` for one SetEnv line. */
void environment_for_sshd(struct text *to, const char *assignment, size_t length);

/* Appends ` "NAME=value"` for one DefaultEnvironment line; `%` is doubled because systemd expands specifiers there. */
void environment_for_systemd(struct text *to, const char *assignment, size_t length);

/* True when the assignment is of that variable. */
bool environment_names(const char *assignment, size_t length, const char *name);

#endif
