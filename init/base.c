#include "base.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

const char *root_prefix = "";

static int console = STDERR_FILENO;

void log_open(void) {
  /* O_NONBLOCK: a stopped terminal (Ctrl-S on the console) must not stop the boot. */
  int fd = open("/dev/console", O_WRONLY | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
  if (fd < 0) return;
  if (console > STDERR_FILENO) close(console);
  console = fd;
}

void log_line(const char *format, ...) {
  char line[512] = "berth: ";
  size_t start = strlen(line);
  va_list arguments;
  va_start(arguments, format);
  int length = vsnprintf(line + start, sizeof line - start - 2, format, arguments);
  va_end(arguments);
  if (length < 0) return;
  size_t end = strlen(line);
  for (size_t i = start; i < end; i++)
    if ((unsigned char)line[i] < ' ') line[i] = ' ';
  line[end++] = '\r';
  line[end++] = '\n';
  ssize_t ignored = write(console, line, end);
  (void)ignored;
}

ssize_t read_file(const char *path, char *buffer, size_t capacity) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return -1;
  size_t length = 0;
  while (length + 1 < capacity) {
    ssize_t n = read(fd, buffer + length, capacity - 1 - length);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      int error = errno;
      close(fd);
      errno = error;
      return -1;
    }
    if (n == 0) break;
    length += (size_t)n;
  }
  close(fd);
  buffer[length] = 0;
  return (ssize_t)length;
}

int write_all(int fd, const void *bytes, size_t length) {
  const char *at = bytes;
  while (length > 0) {
    ssize_t n = write(fd, at, length);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return -1;
    at += n;
    length -= (size_t)n;
  }
  return 0;
}

int write_file(const char *path, const void *bytes, size_t length, mode_t mode) {
  char next[PATH_MOST];
  int printed = snprintf(next, sizeof next, "%s.next", path);
  if (printed < 0 || (size_t)printed >= sizeof next) {
    errno = ENAMETOOLONG;
    return -1;
  }
  unlink(next);
  int fd = open(next, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode);
  if (fd < 0) return -1;
  int failed = write_all(fd, bytes, length) != 0 || fchmod(fd, mode) != 0;
  int error = errno;
  if (close(fd) != 0 && !failed) {
    failed = 1;
    error = errno;
  }
  if (!failed && rename(next, path) != 0) {
    failed = 1;
    error = errno;
  }
  if (!failed) return 0;
  unlink(next);
  errno = error;
  return -1;
}

int rewrite_file(const char *path, const void *bytes, size_t length, mode_t mode) {
  int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, mode);
  if (fd < 0) return -1;
  int failed = write_all(fd, bytes, length) != 0 || fchmod(fd, mode) != 0;
  int error = errno;
  close(fd);
  errno = error;
  return failed ? -1 : 0;
}

int make_directories(const char *path) {
  char part[PATH_MOST];
  size_t length = strlen(path);
  if (length >= sizeof part) {
    errno = ENAMETOOLONG;
    return -1;
  }
  for (size_t i = 1; i <= length; i++) {
    if (path[i] != '/' && path[i] != 0) continue;
    memcpy(part, path, i);
    part[i] = 0;
    if (mkdir(part, 0755) != 0 && errno != EEXIST) return -1;
  }
  return 0;
}

uint64_t uptime_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_BOOTTIME, &now);
  return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

void sleep_ms(unsigned int ms) {
  struct timespec left = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000};
  while (nanosleep(&left, &left) != 0 && errno == EINTR) {
  }
}

bool text_is(const char *text, size_t length, const char *word) {
  return strlen(word) == length && memcmp(text, word, length) == 0;
}

void text_add(struct text *text, const void *bytes, size_t length) {
  if (length > text->capacity - text->length) {
    text->overflow = true;
    return;
  }
  memcpy(text->at + text->length, bytes, length);
  text->length += length;
}

void text_print(struct text *text, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  size_t room = text->capacity - text->length;
  int length = vsnprintf(text->at + text->length, room, format, arguments);
  va_end(arguments);
  if (length < 0 || (size_t)length >= room)
    text->overflow = true;
  else
    text->length += (size_t)length;
}

const char *in_root(char *buffer, size_t capacity, const char *path) {
  int length = snprintf(buffer, capacity, "%s%s", root_prefix, path);
  if (length < 0 || (size_t)length >= capacity) buffer[0] = 0; /* no such path: opening it fails cleanly */
  return buffer;
}
