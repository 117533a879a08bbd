#ifndef BERTH_BASE_H
#define BERTH_BASE_H
/* What every part of exe-init needs: its voice, whole-file reading and writing, time, and the lists' sizes. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum { PATH_MOST = 512 };

/* Says "berth: …" on the machine's console (standard error until log_open). Never blocks, never fails. */
void log_line(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Opens /dev/console for log_line; call again after /dev was mounted. */
void log_open(void);

/* Reads a file whole, at most capacity - 1 bytes, and closes it with a zero. Returns the length or -1 with errno. */
ssize_t read_file(const char *path, char *buffer, size_t capacity);

/* Creates or replaces a file by rename, so that a reader sees the old text or the new one. 0, or -1 with errno. */
int write_file(const char *path, const void *bytes, size_t length, mode_t mode);

/* Creates or rewrites a file in place, keeping its inode: for files that are bound over others. 0, or -1 with errno. */
int rewrite_file(const char *path, const void *bytes, size_t length, mode_t mode);

/* Writes everything to a blocking descriptor. 0, or -1 with errno. */
int write_all(int fd, const void *bytes, size_t length);

/* Like mkdir -p, mode 0755. 0, or -1 with errno. */
int make_directories(const char *path);

/* Milliseconds since boot, time asleep included. */
uint64_t uptime_ms(void);

void sleep_ms(unsigned int ms);

/* True when length bytes at text hold exactly the text of word. */
bool text_is(const char *text, size_t length, const char *word);

/* Growing text with a bound: append what fits, remember whether everything did. */
struct text {
  char *at;
  size_t length;
  size_t capacity;
  bool overflow;
};
void text_add(struct text *text, const void *bytes, size_t length);
void text_print(struct text *text, const char *format, ...) __attribute__((format(printf, 2, 3)));

/*
 * Every path that exe-init writes or reads on the machine's root goes through here, so that tests can run it on a
 * directory. The prefix is empty in a machine.
 */
extern const char *root_prefix;
const char *in_root(char *buffer, size_t capacity, const char *path);

#endif
