#ifndef BERTH_USERS_H
#define BERTH_USERS_H
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "base.h"

/*
 * Looks a user up in /etc/passwd and appends the user, its group and home directory when the image has none.
 * 0, or -1 with errno.
 */
int user_ensure(const char *name, uid_t *uid);

/* Adds root and nobody where missing: sshd separates its privileges with the one and lets in through the other. */
int user_ensure_system(void);

/*
 * Writes /etc/passwd to the text with the tools' shell for root and the login user where theirs is not there: sshd lets
 * nobody in who has none, and an image without any shell is a machine all the same. True when that changes anything.
 */
bool users_with_shell(const char *login, struct text *passwd);

#endif
