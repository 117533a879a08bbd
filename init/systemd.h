#ifndef BERTH_SYSTEMD_H
#define BERTH_SYSTEMD_H
/* What a systemd that runs already has to hear of, when who this machine is has changed. Nothing happens under another init. */

/* Has it, and those of its users, read their settings again: what they start from now on has the new variables. */
void systemd_reload(void);

/* Begins a journal under the machine id and the boot id as they are now, and removes the one that there was under `former`. */
void systemd_new_journal(const char *former);

#endif
