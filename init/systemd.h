#ifndef BERTH_SYSTEMD_H
#define BERTH_SYSTEMD_H
/* What a systemd that runs already has to hear of, when who this machine is has changed. Nothing happens under another init. */

/* Has it, and those of its users, read their settings again: what they start from now on has the new variables. */
void systemd_reload(void);

/* Removes the journal that there was under `former`, and has what is written from now on wait for the next one. */
void systemd_hold_journal(const char *former);

/* Begins the journal that waits, if one does, under the machine id and the boot id as they are now. */
void systemd_begin_journal(void);

#endif
