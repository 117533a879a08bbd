#include "pid1.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base.h"
#include "power.h"
#include "service.h"
#include "supervise.h"

enum { STOP_LIMIT_MS = 20000, KILL_LIMIT_MS = 2000, POLL_MS = 20 };

/* Programs of users: not PID 1, not a thread of the kernel (no command line), not one that asks to be kept. */
static int programs(void) {
  DIR *directory = opendir("/proc");
  int count = 0;
  for (struct dirent *entry; directory && (entry = readdir(directory));) {
    char path[PATH_MOST];
    char text[4];
    if (!isdigit((unsigned char)entry->d_name[0]) || strcmp(entry->d_name, "1") == 0) continue;
    snprintf(path, sizeof path, "/proc/%s/cmdline", entry->d_name);
    if (read_file(path, text, sizeof text) > 0 && text[0] != '@') count++;
  }
  if (directory) closedir(directory);
  return count;
}

static void reap(void) {
  while (waitpid(-1, NULL, WNOHANG) > 0) {
  }
}

static bool wait_for_end(unsigned int limit_ms) {
  uint64_t until = uptime_ms() + limit_ms;
  for (;;) {
    reap();
    if (programs() == 0) return true;
    if (uptime_ms() >= until) return false;
    sleep_ms(POLL_MS);
  }
}

_Noreturn static void shut_down(enum power how) {
  prctl(PR_SET_NAME, "exe-shutdown");
  log_line(how == POWER_REBOOT ? "restarting" : "shutting down");
  kill(-1, SIGTERM);
  kill(-1, SIGCONT);
  /* Shells ignore TERM and end at HUP. */
  kill(-1, SIGHUP);
  if (!wait_for_end(STOP_LIMIT_MS)) log_line("%d processes do not end; ending them", programs());
  kill(-1, SIGKILL);
  wait_for_end(KILL_LIMIT_MS);
  sync();
  if (mount(NULL, "/", NULL, MS_REMOUNT | MS_RDONLY, NULL) != 0) log_line("cannot make / read-only: %s", strerror(errno));
  power_now(how);
}

/* What systemd would mount, for programs that expect it (Docker). */
static void mount_cgroups(void) {
  if (mount("cgroup2", "/sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, "nsdelegate") != 0 && errno != EBUSY)
    log_line("cannot mount /sys/fs/cgroup: %s", strerror(errno));
}

static pid_t start_supervisor(void) {
  struct agent *agent = calloc(1, sizeof *agent);
  if (!agent) return -1;
  agent_init(agent);
  strcpy(agent->stage, "identity");
  pid_t pid = supervise_start(agent);
  free(agent);
  return pid;
}

_Noreturn void pid1_run(pid_t supervisor) {
  sigset_t all;
  sigfillset(&all);
  sigprocmask(SIG_SETMASK, &all, NULL);
  prctl(PR_SET_NAME, "exe-init");
  mount_cgroups();
  service_load();
  for (;;) {
    unsigned int wait_ms = service_run();
    if (wait_ms == 0 || wait_ms > 3600000) wait_ms = 3600000;
    if (supervisor <= 0 && wait_ms > 1000) wait_ms = 1000;
    struct timespec pause = {.tv_sec = wait_ms / 1000, .tv_nsec = (long)(wait_ms % 1000) * 1000000};
    int number = sigtimedwait(&all, NULL, &pause);
    if (number == SIGTERM || number == SIGPWR || number == SIGUSR2 || number == SIGNAL_POWEROFF) shut_down(POWER_OFF);
    if (number == SIGINT || number == SIGNAL_REBOOT) shut_down(POWER_REBOOT);
    int status;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;)
      if (!service_ended(pid, status) && pid == supervisor) supervisor = -1;
    if (supervisor < 0 && number != SIGCHLD) supervisor = start_supervisor();
  }
}
