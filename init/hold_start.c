#include "hold_start.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base.h"
#include "hold_session.h"
#include "hold_wire.h"

enum { RELEASE_TRIES = 10 };

/* A holder that was killed left its socket. */
static bool is_alive(const char *file) {
  char name[HOLD_NAME_MOST + 1];
  size_t length = strlen(file) - strlen(".sock");
  if (length > HOLD_NAME_MOST) return false;
  memcpy(name, file, length);
  name[length] = 0;
  int fd = hold_connect(name);
  if (fd >= 0) close(fd);
  return fd >= 0;
}

static int count_running(const char *directory) {
  DIR *list = opendir(directory);
  int running = 0;
  for (struct dirent *entry; list && (entry = readdir(list));) {
    const char *suffix = strrchr(entry->d_name, '.');
    if (suffix && strcmp(suffix, ".sock") == 0 && (running < HOLD_SESSIONS_MOST - 1 || is_alive(entry->d_name))) running++;
  }
  if (list) closedir(list);
  return running;
}

/* Forgets the oldest ended session when there are too many; false when there were not. */
static bool forget_oldest(const char *directory) {
  DIR *list = opendir(directory);
  int ended = 0;
  struct timespec oldest = {0};
  char path[PATH_MOST] = "";
  for (struct dirent *entry; list && (entry = readdir(list));) {
    const char *suffix = strrchr(entry->d_name, '.');
    struct stat found;
    if (!suffix || strcmp(suffix, ".ended") != 0 || fstatat(dirfd(list), entry->d_name, &found, AT_SYMLINK_NOFOLLOW) != 0) continue;
    if (ended++ > 0 && (found.st_mtim.tv_sec > oldest.tv_sec || (found.st_mtim.tv_sec == oldest.tv_sec && found.st_mtim.tv_nsec >= oldest.tv_nsec)))
      continue;
    oldest = found.st_mtim;
    snprintf(path, sizeof path, "%s/%s", directory, entry->d_name);
  }
  if (list) closedir(list);
  return ended > HOLD_SESSIONS_MOST && unlink(path) == 0;
}

/* An ended session gives its name away; a socket that nobody listens on is a holder that was killed. */
static int take_name(const char *name) {
  struct hold_head head;
  struct hold_info info;
  char path[PATH_MOST];
  /* A holder that says nothing was about to go when it was called, or has too many clients. */
  int tries = 0;
  for (int fd; (fd = hold_connect(name)) >= 0; tries++) {
    bool answered = hold_send(fd, HOLD_RELEASE, NULL, 0) == 0 && hold_receive(fd, &head, &info, sizeof info) == 0;
    close(fd);
    if (answered && !info.running) break;
    if (answered || tries == RELEASE_TRIES) return -1;
  }
  if (hold_path(path, sizeof path, name, "ended") == 0) unlink(path);
  return 0;
}

static int bind_socket(const char *path) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  if (strlen(path) >= sizeof address.sun_path) {
    errno = ENAMETOOLONG;
    return -1;
  }
  strcpy(address.sun_path, path);
  unlink(path);
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  /* The directory lets nobody else in; the mode is the second lock. */
  mode_t old = umask(077);
  int failed = fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) != 0 || listen(fd, HOLD_CLIENTS_MOST) != 0;
  umask(old);
  if (failed && fd >= 0) close(fd);
  return failed ? -1 : fd;
}

int hold_start(const struct hold_options *options) {
  char directory[PATH_MOST];
  char path[PATH_MOST];
  char lock_path[PATH_MOST];
  if (hold_directory(directory, sizeof directory) != 0) return -1;
  if (hold_path(path, sizeof path, options->name, "sock") != 0) return -1;
  /* One lock for all names: two starts at once must not both find a name free, nor pass the limit together. */
  snprintf(lock_path, sizeof lock_path, "%s/.lock", directory);
  int lock = open(lock_path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
  if (lock < 0 || flock(lock, LOCK_EX) != 0) {
    fprintf(stderr, "exe-hold: %s: %s\n", lock_path, strerror(errno));
    return -1;
  }
  int result = HOLD_FAILED;
  int ends[2] = {-1, -1};
  int listener = -1;
  pid_t child = -1;
  while (forget_oldest(directory)) {
  }
  if (take_name(options->name) != 0) {
    result = HOLD_TAKEN;
  } else if (count_running(directory) >= HOLD_SESSIONS_MOST) {
    fprintf(stderr, "exe-hold: there are %d sessions already\n", HOLD_SESSIONS_MOST);
  } else if ((listener = bind_socket(path)) < 0 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
    fprintf(stderr, "exe-hold: %s: %s\n", path, strerror(errno));
  } else if ((child = fork()) == 0) {
    setsid();
    /* Twice, so that the holder is PID 1's child and can never get a terminal. */
    pid_t holder = fork();
    if (holder != 0) _exit(holder < 0);
    close(ends[0]);
    fcntl(ends[1], F_SETFL, fcntl(ends[1], F_GETFL) | O_NONBLOCK);
    hold_session_run(options, listener, ends[1]);
  } else {
    int status = 1;
    if (child > 0 && waitpid(child, &status, 0) == child && status == 0) {
      result = ends[0];
    } else {
      unlink(path);
      fprintf(stderr, "exe-hold: cannot start a process: %s\n", strerror(errno));
    }
  }
  if (ends[1] >= 0) close(ends[1]);
  if (ends[0] >= 0 && result != ends[0]) close(ends[0]);
  if (listener >= 0) close(listener);
  close(lock);
  return result;
}
