#include "stage_one.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent.h"
#include "base.h"
#include "cmdline.h"
#include "disk.h"
#include "identity.h"
#include "modules.h"
#include "mounts.h"
#include "network.h"
#include "supervise.h"

/*
 * kernel -> modules -> network -> root -> tools -> identity -> (sshd, by the agent) -> init. Only the host can make
 * it wait long: for the identity, while a vmhost is being restarted.
 */
enum {
  DISK_LIMIT_MS = 30000,
  IDENTITY_LIMIT_MS = 120000,
  CHANNEL_LIMIT_MS = 10000,
  CHANNEL_POLL_MS = 20,
  FATAL_LIMIT_MS = 3000,
  /* Whatever the limits above add up to; the alarm is for what nobody thought of. */
  BOOT_LIMIT_SECONDS = 300,
};

static struct agent agent;
static char command_line[4096];

static bool has_channel(void) { return agent.channel.fd >= 0 || agent.channel.listener >= 0; }

_Noreturn static void fatal(const char *format, ...) __attribute__((format(printf, 1, 2)));
_Noreturn static void fatal(const char *format, ...) {
  char reason[320];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(reason, sizeof reason, format, arguments);
  va_end(arguments);
  log_line("fatal: %s", reason);
  if (!has_channel()) channel_open(&agent.channel);
  if (has_channel()) agent_fatal(&agent, reason, FATAL_LIMIT_MS);
  log_line("switching off");
  power_now(POWER_OFF);
}

static void out_of_time(int number) {
  (void)number;
  log_line("fatal: the boot took longer than %d s", BOOT_LIMIT_SECONDS);
  power_now(POWER_OFF);
}

/*
 * Passes a stage. Nothing is read from the host before the tools are mounted: a host that answers at once would have
 * its identity, host key and all, written to an /exe/run that the mounts then cover, and sshd would find no key.
 */
static void stage(const char *name) {
  agent_stage(&agent, name);
}

static void open_channel(void) {
  if (channel_open(&agent.channel) == 0) agent_born(&agent);
}

static void configure_network(struct ip_settings *settings) {
  char value[512];
  char reason[256];
  memset(settings, 0, sizeof *settings);
  settings->mode = IP_OFF;
  if (!cmdline_value(command_line, "ip", value, sizeof value)) {
    log_line("no ip= on the kernel's command line: no network");
    return;
  }
  if (!ip_parse(value, settings, reason, sizeof reason)) fatal("%s", reason);
  if (network_apply(settings, reason, sizeof reason) != 0) fatal("%s", reason);
}

static void mount_root(void) {
  char device[64] = "/dev/vda";
  char reason[64];
  cmdline_value(command_line, "root", device, sizeof device);
  if (strncmp(device, "/dev/", 5) != 0) fatal("root=%s is no device; Berth boots from /dev/vda", device);
  if (disk_wait(device, DISK_LIMIT_MS) != 0) fatal("there is no disk %s", device);
  const char *holds = disk_holds(device);
  if (!holds) fatal("%s cannot be read: %s", device, strerror(errno));
  if (strcmp(holds, "ext4") != 0) fatal("%s holds %s and no ext4 filesystem", device, holds);
  if (mkdir("/newroot", 0755) != 0 && errno != EEXIST) fatal("cannot make /newroot: %s", strerror(errno));
  if (mount(device, "/newroot", "ext4", 0, "") != 0) fatal("cannot mount %s: %s", device, strerror(errno));
  struct stat inside;
  if (lstat("/newroot/etc", &inside) != 0 && lstat("/newroot/usr", &inside) != 0 && lstat("/newroot/bin", &inside) != 0)
    fatal("%s is empty: it has neither /etc nor /usr nor /bin", device);
  uint64_t size_bytes = 0;
  snprintf(reason, sizeof reason, "cannot grow %s", device);
  /* The machine is usable at its old size, and the host can ask for it again. */
  if (disk_grow(device, "/newroot", &size_bytes) != 0) log_line("%s: %s", reason, strerror(errno));
}

static void mount_tools_disk(void) {
  char device[64];
  disk_by_serial("tools", "/dev/vdb", device, sizeof device);
  if (disk_wait(device, DISK_LIMIT_MS) != 0) fatal("there is no tools disk");
  if (mount_tools(device) != 0) fatal("cannot mount the tools disk %s: %s", device, strerror(errno));
  if (access(TOOLS "/bin/exe-init", X_OK) != 0) fatal("the tools disk has no bin/exe-init");
}

static void wait_for_identity(void) {
  uint64_t until = uptime_ms() + IDENTITY_LIMIT_MS;
  /* The host names a port in a message of its own, which may come after its device. */
  while (!has_channel()) {
    if (uptime_ms() + IDENTITY_LIMIT_MS >= until + CHANNEL_LIMIT_MS) fatal("there is no control channel");
    sleep_ms(CHANNEL_POLL_MS);
    open_channel();
  }
  while (!agent.identified) {
    if (uptime_ms() >= until) fatal("the host did not say who this machine is within %d s", IDENTITY_LIMIT_MS / 1000);
    agent_serve(&agent, 1000);
  }
}

static bool executable(const char *path) {
  struct stat found;
  return stat(path, &found) == 0 && S_ISREG(found.st_mode) && access(path, X_OK) == 0;
}

/*
 * Container images often have BusyBox's init without anything for it to start; it would only ask for terminals that
 * are not there. OpenRC (Alpine's, when installed) is a system all the same.
 */
static bool is_init(const char *path) {
  char target[PATH_MAX];
  if (!executable(path)) return false;
  const char *name = realpath(path, target) ? strrchr(target, '/') : NULL;
  return !name || strncmp(name, "/busybox", 8) != 0 || executable("/sbin/openrc");
}

_Noreturn static void hand_over(pid_t supervisor) {
  static const char *const programs[] = {"/sbin/init", "/usr/sbin/init", "/lib/systemd/systemd", "/usr/lib/systemd/systemd"};
  char *const environment[] = {(char[]){"HOME=/"}, (char[]){"TERM=linux"},
                               (char[]){"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, NULL};
  sigset_t none;
  char number[12];
  alarm(0);
  signal(SIGALRM, SIG_DFL);
  signal(SIGPIPE, SIG_DFL);
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, NULL);
  for (size_t i = 0; i < sizeof programs / sizeof programs[0]; i++) {
    if (!is_init(programs[i])) continue;
    log_line("starting %s", programs[i]);
    char *const arguments[] = {(char *)(uintptr_t)programs[i], NULL};
    execve(programs[i], arguments, environment);
    log_line("cannot start %s: %s", programs[i], strerror(errno));
  }
  log_line("the image has no init; exe-init stays PID 1");
  snprintf(number, sizeof number, "%d", supervisor);
  execle(TOOLS "/bin/exe-init", "exe-init", "pid1", number, (char *)NULL, environment);
  fatal("cannot start " TOOLS "/bin/exe-init: %s", strerror(errno));
}

_Noreturn void stage_one_run(void) {
  struct ip_settings settings;
  signal(SIGALRM, out_of_time);
  signal(SIGPIPE, SIG_IGN);
  alarm(BOOT_LIMIT_SECONDS);
  umask(022);
  agent_init(&agent);
  agent.booting = true;
  mount_api();
  log_line("exe-init");
  if (read_file("/proc/cmdline", command_line, sizeof command_line) < 0) fatal("cannot read /proc/cmdline: %s", strerror(errno));
  modules_load("/modules");
  open_channel();
  stage("modules");
  configure_network(&settings);
  stage("network");
  mount_root();
  stage("root");
  if (mount_switch("/newroot") != 0) fatal("cannot make the disk the root: %s", strerror(errno));
  mount_tools_disk();
  identity_name_servers(&settings, false);
  identity_tell_systemd();
  stage("tools");
  wait_for_identity();
  agent_stage(&agent, "identity");
  pid_t supervisor = supervise_start(&agent);
  if (supervisor < 0) fatal("cannot start the supervisor: %s", strerror(errno));
  hand_over(supervisor);
}
