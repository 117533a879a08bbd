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

static bool is_child_of_init(const char *pid) {
  char path[PATH_MOST];
  char text[1024];
  int parent = 0;
  snprintf(path, sizeof path, "/proc/%s/stat", pid);
  if (read_file(path, text, sizeof text) <= 0) return false;
  const char *at = strrchr(text, ')');
  return at && sscanf(at, ") %*c %d", &parent) == 1 && parent == 1;
}

/* To every process of this name that PID 1 has started; whoever gives another one that name has only asked for a signal. */
static void tell(const char *name, int signal_number) {
  DIR *directory = opendir("/proc");
  for (struct dirent *entry; directory && (entry = readdir(directory));) {
    const char *pid = entry->d_name;
    if (isdigit((unsigned char)pid[0]) && has_name(pid, name) && is_child_of_init(pid)) kill(atoi(pid), signal_number);
  }
  if (directory) closedir(directory);
}

/* systemd(1), "Signals": SIGHUP is daemon-reload. */
void systemd_reload(void) {
  if (!has_name("1", "systemd")) return;
  kill(1, SIGHUP);
  tell("systemd", SIGHUP);
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

void systemd_new_journal(const char *former) {
  if (!has_name("1", "systemd")) return;
  /* systemd starts it again, and keeps what others write into meanwhile. Killed, it writes nothing more into the old one. */
  tell("systemd-journal", SIGKILL);
  remove_journal("/run/log/journal", former);
  remove_journal("/var/log/journal", former);
}
