#include "users.h"

#include <errno.h>
#include <fcntl.h>
#include <pwd.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base.h"
#include "mounts.h"

enum { FIRST_UID = 1000, LAST_UID = 59999 };

static const char *passwd_path(char *buffer) { return in_root(buffer, PATH_MOST, "/etc/passwd"); }

/* The C library's own look-ups would ask the name service; the image's file is what counts here. */
static bool lookup(const char *name, uid_t *uid) {
  char path[PATH_MOST];
  FILE *file = fopen(passwd_path(path), "re");
  bool found = false;
  for (struct passwd *entry; file && !found && (entry = fgetpwent(file));) {
    found = strcmp(entry->pw_name, name) == 0;
    if (found) *uid = entry->pw_uid;
  }
  if (file) fclose(file);
  return found;
}

static uid_t free_uid(void) {
  char path[PATH_MOST];
  FILE *file = fopen(passwd_path(path), "re");
  uid_t next = FIRST_UID;
  for (struct passwd *entry; file && (entry = fgetpwent(file));)
    if (entry->pw_uid >= next && entry->pw_uid <= LAST_UID) next = entry->pw_uid + 1;
  if (file) fclose(file);
  return next;
}

/* One write, so that a power cut leaves the line or nothing of it; a file without a last line break gets one. */
static int append_line(const char *name, const char *line, mode_t mode, bool create) {
  char path[PATH_MOST];
  char text[512];
  int fd = open(in_root(path, sizeof path, name), O_RDWR | O_APPEND | O_CLOEXEC | (create ? O_CREAT : 0), mode);
  if (fd < 0) return !create && errno == ENOENT ? 0 : -1;
  char last = '\n';
  off_t end = lseek(fd, 0, SEEK_END);
  if (end > 0 && pread(fd, &last, 1, end - 1) != 1) last = '\n';
  int length = snprintf(text, sizeof text, "%s%s\n", last == '\n' ? "" : "\n", line);
  int failed = write_all(fd, text, (size_t)length) != 0 || fsync(fd) != 0;
  int error = errno;
  close(fd);
  errno = error;
  return failed ? -1 : 0;
}

static int add(const char *name, uid_t uid, const char *home, const char *shell, const char *group) {
  char line[PATH_MOST];
  char path[PATH_MOST];
  bool shadow = access(in_root(path, sizeof path, "/etc/shadow"), F_OK) == 0;
  snprintf(line, sizeof line, "%s:%s:%u:%u::%s:%s", name, shadow ? "x" : "*", uid, uid, home, shell);
  make_directories(in_root(path, sizeof path, "/etc"));
  if (append_line("/etc/passwd", line, 0644, true) != 0) return -1;
  snprintf(line, sizeof line, "%s:x:%u:", group, uid);
  if (append_line("/etc/group", line, 0644, true) != 0) return -1;
  snprintf(line, sizeof line, "%s:*:19000:0:99999:7:::", name);
  return append_line("/etc/shadow", line, 0640, false);
}

static const char *first_shell(void) {
  static const char *const shells[] = {"/bin/bash", "/usr/bin/bash", "/bin/zsh", "/bin/sh", "/bin/ash"};
  char path[PATH_MOST];
  for (size_t i = 0; i < sizeof shells / sizeof shells[0]; i++)
    if (access(in_root(path, sizeof path, shells[i]), X_OK) == 0) return shells[i];
  return "/bin/sh";
}

int user_ensure(const char *name, uid_t *uid) {
  if (lookup(name, uid)) return 0;
  char home[128];
  char path[PATH_MOST];
  *uid = free_uid();
  snprintf(home, sizeof home, "/home/%s", name);
  if (add(name, *uid, home, first_shell(), name) != 0) return -1;
  if (make_directories(in_root(path, sizeof path, "/home")) != 0) return -1;
  in_root(path, sizeof path, home);
  if (mkdir(path, 0700) != 0) return errno == EEXIST ? 0 : -1;
  return chown(path, *uid, *uid);
}

static bool has_shell(const char *shell) {
  char path[PATH_MOST];
  return access(in_root(path, sizeof path, *shell ? shell : "/bin/sh"), X_OK) == 0;
}

bool users_with_shell(const char *login, struct text *passwd) {
  static char file[256 * 1024];
  char path[PATH_MOST];
  bool changed = false;
  if (read_file(passwd_path(path), file, sizeof file) <= 0) return false;
  char *rest = file;
  for (char *line; (line = strsep(&rest, "\n"));) {
    char *shell = strrchr(line, ':');
    size_t name = strcspn(line, ":");
    bool enters = text_is(line, name, "root") || text_is(line, name, login);
    if (enters && shell && !has_shell(shell + 1)) {
      text_add(passwd, line, (size_t)(shell + 1 - line));
      text_print(passwd, TOOLS "/bin/sh\n");
      changed = true;
    } else if (*line) text_print(passwd, "%s\n", line);
  }
  return changed && !passwd->overflow;
}

int user_ensure_system(void) {
  uid_t uid;
  if (!lookup("root", &uid) && add("root", 0, "/root", first_shell(), "root") != 0) return -1;
  if (!lookup("nobody", &uid) && add("nobody", 65534, "/nonexistent", "/usr/sbin/nologin", "nogroup") != 0) return -1;
  return 0;
}
