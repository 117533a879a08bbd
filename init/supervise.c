#include "supervise.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base.h"
#include "mounts.h"

/* systemd leaves a process of root alone at shutdown when its argv[0] begins with this; see its ROOT_STORAGE_DAEMONS. */
#define KEPT "@berth"
#define PROGRAM TOOLS "/bin/exe-init"
#define FITHAW ((int)_IOWR('X', 120, int))

enum { DELAY_FIRST_MS = 50, DELAY_MOST_MS = 5000, LIVED_MS = 5000 };

struct service {
  const char *name;
  char *const *arguments;
  pid_t pid;
  uint64_t started_at;
  uint64_t start_at;
  unsigned int delay_ms;
};

/* Sessions are sshd's children and must not inherit what protects the supervisor. */
static void set_oom(const char *value) {
  int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
  if (fd < 0) return;
  ssize_t ignored = write(fd, value, strlen(value));
  (void)ignored;
  close(fd);
}

static void keep_open(int fd) {
  if (fd >= 0) fcntl(fd, F_SETFD, 0);
}

static void standard_streams(void) {
  int in = open("/dev/null", O_RDWR);
  int out = open("/dev/console", O_WRONLY | O_NOCTTY | O_NONBLOCK);
  if (in >= 0) dup2(in, STDIN_FILENO);
  dup2(out >= 0 ? out : in, STDOUT_FILENO);
  dup2(out >= 0 ? out : in, STDERR_FILENO);
  if (in > STDERR_FILENO) close(in);
  if (out > STDERR_FILENO) close(out);
}

int supervise_start(struct agent *agent) {
  int rest = channel_rest(&agent->channel);
  pid_t pid = fork();
  if (pid == 0) {
    char numbers[3][12];
    snprintf(numbers[0], sizeof numbers[0], "%d", agent->channel.listener);
    snprintf(numbers[1], sizeof numbers[1], "%d", agent->channel.fd);
    snprintf(numbers[2], sizeof numbers[2], "%d", rest);
    setsid();
    standard_streams();
    keep_open(agent->channel.listener);
    keep_open(agent->channel.fd);
    execl(PROGRAM, KEPT, "supervise", numbers[0], numbers[1], numbers[2], agent->stage, (char *)NULL);
    log_line("cannot start %s: %s", PROGRAM, strerror(errno));
    _exit(127);
  }
  if (rest >= 0) close(rest);
  return pid;
}

static void start(struct service *service, const char *oom) {
  service->started_at = uptime_ms();
  service->pid = fork();
  if (service->pid != 0) return;
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, NULL);
  setsid();
  set_oom(oom);
  /* sshd's children inherit this directory as theirs when an account's home is missing. */
  if (chdir("/") != 0) _exit(127);
  char *const environment[] = {(char[]){"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, NULL};
  execve(service->arguments[0][0] == '@' ? PROGRAM : service->arguments[0], service->arguments, environment);
  log_line("cannot start %s: %s", service->name, strerror(errno));
  _exit(127);
}

/* systemd-shutdown and exe-init end what is left by signals; bringing it back would only delay them. */
static bool shutting_down(void) {
  char name[32];
  ssize_t length = read_file("/proc/1/comm", name, sizeof name);
  return length > 0 && (text_is(name, (size_t)length, "systemd-shutdow\n") || text_is(name, (size_t)length, "exe-shutdown\n"));
}

static void ended(struct service *service, int status) {
  uint64_t lived = uptime_ms() - service->started_at;
  service->pid = -1;
  service->delay_ms = lived >= LIVED_MS || service->delay_ms == 0 ? DELAY_FIRST_MS : service->delay_ms * 2;
  if (service->delay_ms > DELAY_MOST_MS) service->delay_ms = DELAY_MOST_MS;
  service->start_at = uptime_ms() + service->delay_ms;
  if (shutting_down()) return;
  if (WIFSIGNALED(status))
    log_line("%s was ended by signal %d; starting it again", service->name, WTERMSIG(status));
  else
    log_line("%s ended with status %d; starting it again", service->name, WEXITSTATUS(status));
}

/* An agent that dies between freeze and thaw would leave a machine that cannot write, nor log in to be repaired. */
static void thaw_root(void) {
  int fd = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;
  ioctl(fd, FITHAW, 0);
  close(fd);
}

_Noreturn void supervise_run(const char *listener, const char *fd, const char *rest, const char *stage) {
  char sshd_path[] = TOOLS "/bin/sshd";
  char config[] = TOOLS "/etc/ssh/sshd_config";
  char *sshd_arguments[] = {sshd_path, (char[]){"-D"}, (char[]){"-f"}, config, NULL};
  char agent_name[] = KEPT;
  char *first_agent[] = {agent_name,      (char[]){"agent"}, strdup(listener), strdup(fd),
                         strdup(rest),    strdup(stage),     NULL};
  char *later_agent[] = {agent_name, (char[]){"agent"}, NULL};
  struct service sshd = {.name = "sshd", .arguments = sshd_arguments, .pid = -1};
  struct service agent = {.name = "agent", .arguments = first_agent, .pid = -1};

  sigset_t watched;
  sigfillset(&watched);
  sigprocmask(SIG_SETMASK, &watched, NULL);
  set_oom("-1000");
  start(&sshd, "0");
  start(&agent, "-1000");
  agent.arguments = later_agent;
  const char *const passed[] = {listener, fd, rest};
  for (size_t i = 0; i < 3; i++)
    if (atoi(passed[i]) > STDERR_FILENO) close(atoi(passed[i]));

  for (;;) {
    struct timespec pause = {.tv_sec = 60};
    uint64_t now = uptime_ms();
    if (sshd.pid < 0 && !shutting_down() && now >= sshd.start_at) start(&sshd, "0");
    if (agent.pid < 0 && now >= agent.start_at) {
      thaw_root();
      start(&agent, "-1000");
    }
    if (sshd.pid < 0 || agent.pid < 0) pause = (struct timespec){.tv_nsec = 50 * 1000000L};
    int signal_number = sigtimedwait(&watched, NULL, &pause);
    if (signal_number == SIGHUP && sshd.pid > 0) kill(sshd.pid, SIGHUP);
    int status;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
      if (pid == sshd.pid) ended(&sshd, status);
      if (pid == agent.pid) ended(&agent, status);
    }
  }
}
