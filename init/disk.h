#ifndef BERTH_DISK_H
#define BERTH_DISK_H
#include <stddef.h>
#include <stdint.h>

/* Waits until a block device is there. 0, or -1 when limit_ms have passed. */
int disk_wait(const char *device, unsigned int limit_ms);

/* Says what a disk holds: "ext4", another filesystem's name, "nothing" or "something else"; NULL: unreadable (errno). */
const char *disk_holds(const char *device);

/* Path of the disk with that virtio serial number, or fallback. */
const char *disk_by_serial(const char *serial, const char *fallback, char *path, size_t capacity);

/*
 * Grows a mounted ext4 to the size of its device, online. 0 with the filesystem's size, also when there was nothing
 * to grow; -1 with errno.
 */
int disk_grow(const char *device, const char *mount_point, uint64_t *size_bytes);

#endif
