#include "hold_program.h"

#include <errno.h>
#include <fcntl.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

_Noreturn static void run_program(const struct hold_options *options, int terminal, int output) {
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, NULL);
  for (int number = 1; number < NSIG; number++) signal(number, SIG_DFL);
  setsid();
  if (terminal >= 0) ioctl(terminal, TIOCSCTTY, 0);
  int in = terminal >= 0 ? terminal : open("/dev/null", O_RDWR);
  int out = terminal >= 0 ? terminal : output;
  dup2(in, STDIN_FILENO);
  dup2(out, STDOUT_FILENO);
  dup2(out, STDERR_FILENO);
  if (in > STDERR_FILENO) close(in);
  if (out > STDERR_FILENO && out != in) close(out);
  setenv("EXE_HOLD", options->name, 1);
  if (options->command) {
    execvp(options->command[0], options->command);
    fprintf(stderr, "exe-hold: %s: %s\n", options->command[0], strerror(errno));
    _exit(errno == ENOENT ? 127 : 126);
  }
  struct passwd *user = getpwuid(geteuid());
  const char *shell = getenv("SHELL");
  if (!shell || !*shell) shell = user && user->pw_shell && *user->pw_shell ? user->pw_shell : "/bin/sh";
  char first[256];
  const char *slash = strrchr(shell, '/');
  snprintf(first, sizeof first, "-%s", slash ? slash + 1 : shell);
  execl(shell, first, (char *)NULL);
  fprintf(stderr, "exe-hold: %s: %s\n", shell, strerror(errno));
  _exit(127);
}

/* Returns the program's side of a new terminal, and ours in *master. */
static int open_terminal(const struct hold_size *size, int *master) {
  int ours = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
  if (ours < 0) return -1;
  struct winsize window = {.ws_col = size->columns ? size->columns : 80, .ws_row = size->rows ? size->rows : 24};
  char name[64];
  int slave = -1;
  if (grantpt(ours) == 0 && unlockpt(ours) == 0 && ptsname_r(ours, name, sizeof name) == 0)
    slave = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
  if (slave < 0) {
    close(ours);
    return -1;
  }
  ioctl(slave, TIOCSWINSZ, &window);
  struct termios modes;
  if (tcgetattr(slave, &modes) == 0) {
    modes.c_iflag |= IUTF8;
    tcsetattr(slave, TCSANOW, &modes);
  }
  *master = ours;
  return slave;
}

int hold_program_start(const struct hold_options *options, pid_t *pid) {
  int output = -1;
  int terminal = -1;
  int ends[2] = {-1, -1};
  if (options->terminal)
    terminal = open_terminal(&options->size, &output);
  else if (pipe2(ends, O_CLOEXEC) == 0)
    output = ends[0];
  if (output < 0) return -1;
  *pid = fork();
  if (*pid == 0) run_program(options, terminal, ends[1]);
  if (terminal >= 0) close(terminal);
  if (ends[1] >= 0) close(ends[1]);
  if (*pid < 0) return -1;
  fcntl(output, F_SETFL, fcntl(output, F_GETFL) | O_NONBLOCK);
  return output;
}
