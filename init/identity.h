#ifndef BERTH_IDENTITY_H
#define BERTH_IDENTITY_H
/*
 * Who this machine is, as the host says: written into memory (/exe/run) and shown over the disk's files by bind
 * mounts. At the first boot and again after every restore, when everything may be another machine's.
 */
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "frame.h"
#include "ip.h"

struct identity_result {
  uid_t login_uid;
  bool sshd_changed;     /* its host key or the sessions' variables: it must read them again */
  bool services_changed; /* their variables, likewise */
};

/*
 * Carries out an IDENTIFY. rehearsing: only writes files under root_prefix, leaves kernel and mounts alone.
 * False, with a sentence in reason, when a field is missing or bad (nothing was changed then) or could not be applied.
 */
bool identity_apply(const struct frame *frame, bool rehearsing, struct identity_result *result, char *reason, size_t capacity);

/*
 * Carries out the rest of an IDENTIFY that makes somebody of a machine that ran as nobody: its own boot id is shown, and
 * what its programs have noted under the machine id that it had is removed.
 */
bool identity_begin(const struct frame *frame, const char *former_machine_id, char *reason, size_t capacity);

/* The machine id that is shown now; empty when there is none yet. */
void identity_machine_id(char id[33]);

/* Carries out a KEYS: replaces the authorized keys. */
bool identity_keys(const struct frame *frame, char *reason, size_t capacity);

/* Writes resolv.conf and the time server as ip= has them, and shows them where programs look. */
void identity_name_servers(const struct ip_settings *settings, bool rehearsing);

/* Tells systemd, before it starts, to leave eth0 and the files shown from memory alone. */
void identity_tell_systemd(void);

#endif
