#include "systemd.h"

#include <ctype.h>
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base.h"

static bool has_name(const char *pid, const char *name) {
  char path[PATH_MOST];
  char text[32];
  snprintf(path, sizeof path, "/proc/%s/comm", pid);
  ssize_t length = read_file(path, text, sizeof text);
  return length > 1 && text_is(text, (size_t)length - 1, name);
}

/* Its state, a letter of proc_pid_stat(5), where PID 1 has started it; 0 otherwise. */
static char child_state(const char *pid) {
  char path[PATH_MOST];
  char text[1024];
  char state = 0;
  int parent = 0;
  snprintf(path, sizeof path, "/proc/%s/stat", pid);
  if (read_file(path, text, sizeof text) <= 0) return 0;
  const char *at = strrchr(text, ')');
  return at && sscanf(at, ") %c %d", &state, &parent) == 2 && parent == 1 ? state : 0;
}

/*
 * To every process of this name that PID 1 has started, in this state, or in any if that is 0; whoever gives another one
 * that name has only asked for a signal.
 */
static void tell(const char *name, char wanted, int signal_number) {
  DIR *directory = opendir("/proc");
  for (struct dirent *entry; directory && (entry = readdir(directory));) {
    const char *pid = entry->d_name;
    if (!isdigit((unsigned char)pid[0]) || !has_name(pid, name)) continue;
    char state = child_state(pid);
    if (state != 0 && (wanted == 0 || state == wanted)) kill(atoi(pid), signal_number);
  }
  if (directory) closedir(directory);
}

/* systemd(1), "Signals": SIGHUP is daemon-reload. */
void systemd_reload(void) {
  if (!has_name("1", "systemd")) return;
  kill(1, SIGHUP);
  tell("systemd", 0, SIGHUP);
}

static void remove_journal(const char *under, const char *machine_id) {
  char path[PATH_MOST];
  snprintf(path, sizeof path, "%s/%s", under, machine_id);
  DIR *directory = opendir(path);
  for (struct dirent *entry; directory && (entry = readdir(directory));)
    if (entry->d_name[0] != '.') unlinkat(dirfd(directory), entry->d_name, 0);
  if (directory) closedir(directory);
  rmdir(path);
}

void systemd_hold_journal(const char *former) {
  if (!has_name("1", "systemd")) return;
  /* It writes nothing more into the old one; what others have to say waits in its sockets. */
  tell("systemd-journal", 0, SIGSTOP);
  remove_journal("/run/log/journal", former);
  remove_journal("/var/log/journal", former);
}

/* systemd starts it again, and hands it its sockets. */
void systemd_begin_journal(void) {
  if (has_name("1", "systemd")) tell("systemd-journal", 'T', SIGKILL);
}
