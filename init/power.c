#include "power.h"

#include <signal.h>
#include <string.h>
#include <sys/reboot.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base.h"

enum { SYNC_LIMIT_MS = 5000, POLL_MS = 10 };

/* In a process of its own, because sync() waits for a disk that may never answer. */
static void sync_bounded(void) {
  pid_t child = fork();
  if (child == 0) {
    sync();
    _exit(0);
  }
  uint64_t until = uptime_ms() + SYNC_LIMIT_MS;
  while (child > 0 && waitpid(child, NULL, WNOHANG) == 0) {
    if (uptime_ms() >= until) {
      log_line("the disk does not answer; what was not written is lost");
      return;
    }
    sleep_ms(POLL_MS);
  }
}

void power_now(enum power how) {
  sync_bounded();
  reboot(how == POWER_REBOOT ? RB_AUTOBOOT : RB_POWER_OFF);
  /* Only a machine without ACPI comes here. */
  reboot((int)RB_HALT_SYSTEM);
  for (;;) pause();
}

bool power_takes_signals(const char *program, const char *name) {
  const char *file = strrchr(program, '/');
  return (file && strncmp(file, "/systemd", strlen("/systemd")) == 0) || strcmp(name, "exe-init\n") == 0;
}

/* sd_booted(3) is no help: its directory is in every machine, because what systemd shall know lies there before it begins. */
static bool takes_signals(void) {
  char program[PATH_MOST];
  char name[32];
  ssize_t length = readlink("/proc/1/exe", program, sizeof program - 1);
  program[length > 0 ? length : 0] = 0;
  if (read_file("/proc/1/comm", name, sizeof name) < 0) name[0] = 0;
  return power_takes_signals(program, name);
}

void power_ask(enum power how) {
  if (takes_signals()) {
    kill(1, how == POWER_REBOOT ? SIGNAL_REBOOT : SIGNAL_POWEROFF);
    return;
  }
  if (fork() == 0) {
    const char *program = how == POWER_REBOOT ? "/sbin/reboot" : "/sbin/poweroff";
    execl(program, program, (char *)NULL);
    _exit(127);
  }
}
