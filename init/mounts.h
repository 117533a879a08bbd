#ifndef BERTH_MOUNTS_H
#define BERTH_MOUNTS_H
#include <stdbool.h>

/* Where the tools disk lies in every machine, and the memory on it that everything Berth tells a machine is kept in. */
#define TOOLS "/exe"
#define RUN TOOLS "/run"

/* /dev, /proc, /sys and /run, and what belongs into /dev; in the initramfs. */
void mount_api(void);

/*
 * Makes new_root the root: moves the API filesystems into it, empties the initramfs (its memory is freed) and enters.
 * 0, or -1 with errno.
 */
int mount_switch(const char *new_root);

/* Mounts the tools disk at /exe with memory on /exe/run, and the kernel's modules at /lib/modules. 0, or -1 with errno. */
int mount_tools(const char *device);

/*
 * Keeps a procfs beside the one at /proc, which something is about to be shown over: the kernel lets a user namespace
 * mount one of its own only where one is to be seen that nothing covers (mount_too_revealing() in fs/namespace.c), and
 * containers without root need that. Nobody but root gets at it. 0, or -1 with errno.
 */
int mount_bare_proc(void);

/*
 * Shows source in place of target, writing nothing to the disk below but an empty file where there is none. A target
 * that is a symbolic link is covered itself, wherever it points. Nothing is done when it is shown already.
 * 0, or -1 with errno.
 */
int mount_over(const char *source, const char *target);

#endif
