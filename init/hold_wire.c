#include "hold_wire.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base.h"

#define HOLD_BASE "/exe/run/hold"

bool hold_name_good(const char *name) {
  size_t length = strlen(name);
  if (length == 0 || length > HOLD_NAME_MOST || *name == '.' || *name == '-') return false;
  return strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == length;
}

int hold_directory(char *path, size_t capacity) {
  const char *own = getenv("EXE_HOLD_DIRECTORY");
  int length = own && *own ? snprintf(path, capacity, "%s", own) : snprintf(path, capacity, HOLD_BASE "/%u", geteuid());
  struct stat found;
  if (length < 0 || (size_t)length >= capacity) return -1;
  if (mkdir(path, 0700) != 0 && errno != EEXIST) {
    fprintf(stderr, "exe-hold: %s: %s\n", path, strerror(errno));
    return -1;
  }
  /* The directory above is everybody's: somebody else may have made this one first. */
  if (lstat(path, &found) != 0 || !S_ISDIR(found.st_mode) || found.st_uid != geteuid() || (found.st_mode & 077) != 0) {
    fprintf(stderr, "exe-hold: %s is not a directory of yours with mode 0700\n", path);
    return -1;
  }
  return 0;
}

int hold_path(char *path, size_t capacity, const char *name, const char *suffix) {
  char directory[PATH_MOST];
  if (hold_directory(directory, sizeof directory) != 0) return -1;
  int length = snprintf(path, capacity, "%s/%s.%s", directory, name, suffix);
  return length >= 0 && (size_t)length < capacity ? 0 : -1;
}

int hold_connect(const char *name) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  if (hold_path(address.sun_path, sizeof address.sun_path, name, "sock") != 0) return -1;
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return -1;
  if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0) return fd;
  close(fd);
  return -1;
}

int hold_send(int fd, uint32_t type, const void *payload, size_t length) {
  struct hold_head head = {.type = type, .length = (uint32_t)length};
  if (write_all(fd, &head, sizeof head) != 0) return -1;
  return length > 0 ? write_all(fd, payload, length) : 0;
}

static int read_exactly(int fd, void *bytes, size_t length) {
  char *at = bytes;
  while (length > 0) {
    ssize_t n = read(fd, at, length);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return -1;
    at += n;
    length -= (size_t)n;
  }
  return 0;
}

int hold_receive(int fd, struct hold_head *head, void *payload, size_t capacity) {
  if (read_exactly(fd, head, sizeof *head) != 0 || head->length > capacity) return -1;
  return read_exactly(fd, payload, head->length);
}

int hold_exit_status(const struct hold_info *info) {
  return info->signal > 0 ? 128 + info->signal : info->exit_code;
}
