#include "disk.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base.h"

/* linux/fs.h and fs/ext4/ext4.h; the musl toolchain comes without the kernel's headers. */
#define BLKGETSIZE64 ((int)_IOR(0x12, 114, size_t))
#define EXT4_IOC_RESIZE_FS ((int)_IOW('f', 16, uint64_t))

enum { SUPERBLOCK_AT = 1024, SUPERBLOCK_BYTES = 1024, POLL_MS = 5 };

int disk_wait(const char *device, unsigned int limit_ms) {
  uint64_t until = uptime_ms() + limit_ms;
  for (;;) {
    struct stat stat_buffer;
    if (stat(device, &stat_buffer) == 0 && S_ISBLK(stat_buffer.st_mode)) return 0;
    if (uptime_ms() >= until) return -1;
    sleep_ms(POLL_MS);
  }
}

static uint32_t little32(const uint8_t *at) {
  return (uint32_t)at[3] << 24 | (uint32_t)at[2] << 16 | (uint32_t)at[1] << 8 | at[0];
}

const char *disk_holds(const char *device) {
  static const struct {
    const char *name;
    size_t at;
    const char *magic;
  } known[] = {
      {"xfs", 0, "XFSB"},         {"a LUKS volume", 0, "LUKS"},           {"squashfs", 0, "hsqs"},
      {"btrfs", 65600, "_BHRfS"}, {"swap space", 4086, "SWAPSPACE2"}, {"f2fs", 1024, "\x10\x20\xf5\xf2"},
      {"an erofs", 1024, "\xe2\xe1\xf5\xe0"}, {"a qcow2 image", 0, "QFI\xfb"},
  };
  static uint8_t start[72 * 1024];
  int fd = open(device, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return NULL;
  ssize_t length = pread(fd, start, sizeof start, 0);
  int error = errno;
  close(fd);
  if (length < 0) {
    errno = error;
    return NULL;
  }
  size_t have = (size_t)length;
  /* ext2 and ext3 have the same magic number; the kernel's ext4 driver takes them. */
  if (have >= SUPERBLOCK_AT + SUPERBLOCK_BYTES && start[SUPERBLOCK_AT + 56] == 0x53 && start[SUPERBLOCK_AT + 57] == 0xef)
    return "ext4";
  for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
    size_t size = strlen(known[i].magic);
    if (have >= known[i].at + size && memcmp(start + known[i].at, known[i].magic, size) == 0) return known[i].name;
  }
  if (have >= 512 && start[510] == 0x55 && start[511] == 0xaa) return "a partition table";
  for (size_t i = 0; i < have; i++)
    if (start[i] != 0) return "something else";
  return "nothing";
}

const char *disk_by_serial(const char *serial, const char *fallback, char *path, size_t capacity) {
  DIR *directory = opendir("/sys/block");
  bool found = false;
  for (struct dirent *entry; directory && !found && (entry = readdir(directory));) {
    char file[PATH_MOST];
    char text[64];
    snprintf(file, sizeof file, "/sys/block/%s/serial", entry->d_name);
    ssize_t length = read_file(file, text, sizeof text);
    while (length > 0 && (text[length - 1] == '\n' || text[length - 1] == ' ')) length--;
    if (length <= 0 || !text_is(text, (size_t)length, serial)) continue;
    snprintf(path, capacity, "/dev/%s", entry->d_name);
    found = true;
  }
  if (directory) closedir(directory);
  if (!found) snprintf(path, capacity, "%s", fallback);
  return path;
}

int disk_grow(const char *device, const char *mount_point, uint64_t *size_bytes) {
  uint8_t superblock[SUPERBLOCK_BYTES];
  uint64_t device_bytes = 0;
  int fd = open(device, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return -1;
  ssize_t length = pread(fd, superblock, sizeof superblock, SUPERBLOCK_AT);
  int failed = length != (ssize_t)sizeof superblock || ioctl(fd, BLKGETSIZE64, &device_bytes) != 0;
  int error = length >= 0 && length != (ssize_t)sizeof superblock ? EIO : errno;
  close(fd);
  if (failed) {
    errno = error;
    return -1;
  }
  /* s_blocks_count_lo, s_log_block_size, s_feature_incompat (64BIT), s_blocks_count_hi */
  uint64_t blocks = little32(superblock + 4);
  uint32_t shift = little32(superblock + 24);
  if (shift > 6) {
    errno = EINVAL;
    return -1;
  }
  if (little32(superblock + 96) & 0x80) blocks |= (uint64_t)little32(superblock + 336) << 32;
  uint64_t block_bytes = (uint64_t)1024 << shift;
  uint64_t wanted = device_bytes / block_bytes;
  *size_bytes = blocks * block_bytes;
  if (wanted <= blocks) return 0;
  fd = open(mount_point, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return -1;
  failed = ioctl(fd, EXT4_IOC_RESIZE_FS, &wanted) != 0;
  error = errno;
  close(fd);
  if (failed) {
    errno = error;
    return -1;
  }
  *size_bytes = wanted * block_bytes;
  return 0;
}
