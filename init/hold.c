/*
 * exe-hold: named terminals and processes that outlive whoever started them: the SSH connection, the gateway, the
 * browser. Terminals take several people at once; closing the connection is leaving.
 */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "base.h"
#include "hold_start.h"
#include "hold_wire.h"

enum { EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_MISSING = 3 };
enum { ATTACH_TRIES = 3 };

static const char usage[] =
    "exe-hold keeps terminals and processes running when their client goes.\n"
    "  exe-hold attach NAME [--cols N] [--rows N] [-- CMD..]  go to a terminal; made when missing, with CMD or a login shell\n"
    "  exe-hold run NAME -- CMD..                             run a process and show its output; it goes on without this client\n"
    "  exe-hold ls [--json]                                   all sessions\n"
    "  exe-hold status NAME [--json]                          one of them\n"
    "  exe-hold logs NAME [-f]                                the output that is kept (the last 512 KiB)\n"
    "  exe-hold wait NAME                                     wait for the end; exits as the session did\n"
    "  exe-hold kill NAME [SIGNAL]                            HUP for terminals, TERM for processes unless named\n"
    "Exit status 2: usage, 3: no such session.\n";

static int fail_usage(const char *why) {
  fprintf(stderr, "exe-hold: %s\n%s", why, usage);
  return EXIT_USAGE;
}

static int missing(const char *name) {
  fprintf(stderr, "exe-hold: there is no session called %s\n", name);
  return EXIT_MISSING;
}

/* ---- ended sessions ---- */

static int open_ended(const char *name, struct hold_info *info) {
  char path[PATH_MOST];
  if (hold_path(path, sizeof path, name, "ended") != 0) return -1;
  int fd = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
  if (fd >= 0 && read(fd, info, sizeof *info) == (ssize_t)sizeof *info && info->magic == HOLD_MAGIC) return fd;
  if (fd >= 0) close(fd);
  return -1;
}

/* Asks the holder, or the file it left. 0, or -1: there is no such session. */
static int ask(const char *name, uint32_t type, const void *payload, size_t length, struct hold_info *info) {
  struct hold_head head;
  int fd = hold_connect(name);
  if (fd >= 0) {
    int got = hold_send(fd, type, payload, length) == 0 && hold_receive(fd, &head, info, sizeof *info) == 0 && head.type == HOLD_INFO;
    close(fd);
    if (got) return 0;
  }
  fd = open_ended(name, info);
  if (fd < 0) return -1;
  close(fd);
  return 0;
}

/* ---- attach, run, logs, wait ---- */

static struct termios terminal_modes;
static bool terminal_changed;
static int resized[2] = {-1, -1};

static void restore_terminal(void) {
  if (terminal_changed) tcsetattr(STDIN_FILENO, TCSADRAIN, &terminal_modes);
  terminal_changed = false;
}

static void make_raw(void) {
  struct termios raw;
  if (tcgetattr(STDIN_FILENO, &terminal_modes) != 0) return;
  raw = terminal_modes;
  cfmakeraw(&raw);
  terminal_changed = tcsetattr(STDIN_FILENO, TCSADRAIN, &raw) == 0;
  atexit(restore_terminal);
}

static void on_resize(int number) {
  int saved = errno;
  (void)number;
  ssize_t ignored = write(resized[1], "", 1);
  (void)ignored;
  errno = saved;
}

static void on_end(int number) {
  restore_terminal();
  _exit(128 + number);
}

static struct hold_size terminal_size(struct hold_size wanted) {
  struct winsize window;
  if (ioctl(STDIN_FILENO, TIOCGWINSZ, &window) == 0) {
    if (wanted.columns == 0) wanted.columns = window.ws_col;
    if (wanted.rows == 0) wanted.rows = window.ws_row;
  }
  return wanted;
}

/* The holder ended before it heard this client: what it left behind answers. */
#define HOLDER_GONE (-1)

static int holder_gone(void) {
  fprintf(stderr, "exe-hold: the session's holder is gone\n");
  return EXIT_FAILED;
}

/*
 * Shows what comes until the session or this client ends. attached: what is typed goes there; the end of the input
 * is leaving. Returns the exit status, or HOLDER_GONE when not a word came.
 */
static int stream(int fd, bool attached, bool quiet) {
  static uint8_t payload[HOLD_PAYLOAD_MOST + 64];
  struct hold_head head;
  bool heard = false;
  bool leaving = false;
  for (;;) {
    struct pollfd wait[4] = {{.fd = fd, .events = POLLIN},
                             {.fd = attached && !leaving ? STDIN_FILENO : -1, .events = POLLIN},
                             {.fd = attached ? resized[0] : -1, .events = POLLIN},
                             /* Whoever reads the output may be gone long before there is more of it. */
                             {.fd = STDOUT_FILENO, .events = 0}};
    if (poll(wait, 4, -1) < 0) {
      if (errno == EINTR) continue;
      return EXIT_FAILED;
    }
    if (wait[3].revents & (POLLERR | POLLHUP)) return attached ? 0 : EXIT_FAILED;
    if (wait[2].revents & POLLIN) {
      ssize_t ignored = read(resized[0], payload, sizeof payload);
      (void)ignored;
      struct hold_size size = terminal_size((struct hold_size){0});
      hold_send(fd, HOLD_RESIZE, &size, sizeof size);
    }
    if (wait[1].revents) {
      ssize_t n = read(STDIN_FILENO, payload, HOLD_PAYLOAD_MOST);
      /* The holder closes its end when it has said what it has to say, such as that there is no terminal here. */
      if (n <= 0 && !(n < 0 && errno == EINTR)) leaving = shutdown(fd, SHUT_WR) == 0;
      if (n > 0 && hold_send(fd, HOLD_INPUT, payload, (size_t)n) != 0) return EXIT_FAILED;
    }
    if (!wait[0].revents) continue;
    if (hold_receive(fd, &head, payload, sizeof payload) != 0) {
      restore_terminal();
      if (leaving) return 0;
      return heard ? holder_gone() : HOLDER_GONE;
    }
    heard = true;
    if (head.type == HOLD_OUTPUT && !quiet && write_all(STDOUT_FILENO, payload, head.length) != 0) return attached ? 0 : EXIT_FAILED;
    if (head.type == HOLD_ERROR) {
      fprintf(stderr, "exe-hold: %.*s\n", (int)head.length, (char *)payload);
      return EXIT_FAILED;
    }
    if (head.type != HOLD_INFO) continue;
    struct hold_info info;
    memcpy(&info, payload, sizeof info);
    return hold_exit_status(&info);
  }
}

/*
 * A connection to a session that is there, or is made. -1: it cannot be, which was said.
 * fresh: the one that was found before had ended.
 */
static int reach(const struct hold_options *options, bool fresh) {
  int fd = fresh ? -1 : hold_connect(options->name);
  if (fd < 0) fd = hold_start(options);
  /* Somebody else was quicker. */
  return fd == HOLD_TAKEN ? hold_connect(options->name) : fd;
}

static int attach(const struct hold_options *options) {
  struct hold_options wanted = *options;
  wanted.size = terminal_size(options->size);
  int fd = reach(&wanted, false);
  if (fd < 0) return EXIT_FAILED;
  if (isatty(STDIN_FILENO) && pipe2(resized, O_CLOEXEC | O_NONBLOCK) == 0) {
    struct sigaction action = {.sa_handler = on_resize, .sa_flags = SA_RESTART};
    sigaction(SIGWINCH, &action, NULL);
    signal(SIGTERM, on_end);
    signal(SIGHUP, on_end);
    make_raw();
  }
  int status = HOLDER_GONE;
  /* The program may have ended just now; then the name is the next session's. */
  for (int tries = 0; status == HOLDER_GONE && tries < ATTACH_TRIES && fd >= 0; tries++) {
    if (tries > 0) {
      fd = reach(&wanted, true);
      if (resized[0] >= 0) make_raw();
    }
    if (fd >= 0 && hold_send(fd, HOLD_ATTACH, &wanted.size, sizeof wanted.size) == 0) status = stream(fd, true, false);
    if (fd >= 0) close(fd);
  }
  return status == HOLDER_GONE ? holder_gone() : status;
}

static int run(const struct hold_options *options) {
  int fd = hold_start(options);
  if (fd == HOLD_TAKEN) fprintf(stderr, "exe-hold: there is a session called %s already\n", options->name);
  if (fd < 0) return EXIT_FAILED;
  if (hold_send(fd, HOLD_FOLLOW, NULL, 0) != 0) return EXIT_FAILED;
  int status = stream(fd, false, false);
  close(fd);
  return status == HOLDER_GONE ? holder_gone() : status;
}

static int follow(const char *name, uint32_t type) {
  struct hold_info info;
  int fd = hold_connect(name);
  int status = fd >= 0 && hold_send(fd, type, NULL, 0) == 0 ? stream(fd, false, type == HOLD_WAIT) : HOLDER_GONE;
  if (fd >= 0) close(fd);
  if (status != HOLDER_GONE) return type == HOLD_WAIT ? status : 0;
  fd = open_ended(name, &info);
  if (fd < 0) return missing(name);
  char piece[4096];
  for (ssize_t n; type != HOLD_WAIT && (n = read(fd, piece, sizeof piece)) > 0;)
    if (write_all(STDOUT_FILENO, piece, (size_t)n) != 0) break;
  close(fd);
  return type == HOLD_WAIT ? hold_exit_status(&info) : 0;
}

/* ---- ls, status, kill ---- */

/* Length of the UTF-8 sequence at text, or 0 when it is none. */
static size_t utf8_length(const unsigned char *text) {
  size_t length = *text < 0x80 ? 1 : (*text & 0xe0) == 0xc0 ? 2 : (*text & 0xf0) == 0xe0 ? 3 : (*text & 0xf8) == 0xf0 ? 4 : 0;
  for (size_t i = 1; i < length; i++)
    if ((text[i] & 0xc0) != 0x80) return 0;
  return *text == 0xc0 || *text == 0xc1 || *text > 0xf4 ? 0 : length;
}

static void print_json_text(const char *text) {
  putchar('"');
  for (const unsigned char *at = (const unsigned char *)text; *at;) {
    size_t length = utf8_length(at);
    if (length == 0 || *at < ' ' || *at == 127) printf(length == 0 ? "\\ufffd" : "\\u%04x", *at);
    else if (*at == '"' || *at == '\\') printf("\\%c", *at);
    else fwrite(at, 1, length, stdout);
    at += length == 0 ? 1 : length;
  }
  putchar('"');
}

static void print_json(const struct hold_info *info) {
  printf("{\"name\":");
  print_json_text(info->name);
  printf(",\"kind\":\"%s\",\"state\":\"%s\",\"pid\":%d", info->terminal ? "terminal" : "process",
         info->running ? "running" : "ended", info->pid);
  printf(",\"command\":");
  print_json_text(info->command);
  printf(",\"attached\":%u,\"output_bytes\":%llu,\"started_at_ms\":%llu", info->attached,
         (unsigned long long)info->output_bytes, (unsigned long long)info->started_at_ms);
  if (info->running) {
    printf(",\"ended_at_ms\":null,\"exit_code\":null,\"signal\":null}");
    return;
  }
  printf(",\"ended_at_ms\":%llu", (unsigned long long)info->ended_at_ms);
  if (info->signal > 0) printf(",\"exit_code\":null,\"signal\":%d}", info->signal);
  else printf(",\"exit_code\":%d,\"signal\":null}", info->exit_code);
}

static void print_line(const struct hold_info *info) {
  char state[48];
  if (info->running) snprintf(state, sizeof state, "running, %u attached", info->attached);
  else if (info->signal > 0) snprintf(state, sizeof state, "ended by signal %d", info->signal);
  else snprintf(state, sizeof state, "ended with %d", info->exit_code);
  printf("%-20s %-9s %-22s ", info->name, info->terminal ? "terminal" : "process", state);
  /* A command line is somebody's text; on a terminal it must not be more than that. */
  for (const char *at = info->command[0] ? info->command : "(login shell)"; *at; at++)
    putchar((unsigned char)*at < ' ' || *at == 127 ? '?' : *at);
  putchar('\n');
}

static int compare_names(const void *left, const void *right) {
  return strcmp(left, right);
}

static int list(bool json) {
  static char names[HOLD_SESSIONS_MOST * 4][HOLD_NAME_MOST + 1];
  char directory[PATH_MOST];
  size_t count = 0;
  if (hold_directory(directory, sizeof directory) != 0) return EXIT_FAILED;
  DIR *files = opendir(directory);
  for (struct dirent *entry; files && count < sizeof names / sizeof names[0] && (entry = readdir(files));) {
    char *suffix = strrchr(entry->d_name, '.');
    if (!suffix || (strcmp(suffix, ".sock") != 0 && strcmp(suffix, ".ended") != 0)) continue;
    *suffix = 0;
    if (hold_name_good(entry->d_name)) strcpy(names[count++], entry->d_name);
  }
  if (files) closedir(files);
  qsort(names, count, sizeof names[0], compare_names);
  if (json) printf("{\"sessions\":[");
  bool first = true;
  for (size_t i = 0; i < count; i++) {
    struct hold_info info;
    if ((i > 0 && strcmp(names[i], names[i - 1]) == 0) || ask(names[i], HOLD_STATUS, NULL, 0, &info) != 0) continue;
    if (json && !first) putchar(',');
    first = false;
    if (json) print_json(&info);
    else print_line(&info);
  }
  if (json) printf("]}\n");
  return 0;
}

static int status(const char *name, bool json) {
  struct hold_info info;
  if (ask(name, HOLD_STATUS, NULL, 0, &info) != 0) return missing(name);
  if (json) {
    print_json(&info);
    putchar('\n');
  } else {
    print_line(&info);
  }
  return 0;
}

static int signal_number(const char *text) {
  static const struct {
    const char *name;
    int number;
  } names[] = {{"HUP", SIGHUP},   {"INT", SIGINT},   {"QUIT", SIGQUIT}, {"KILL", SIGKILL}, {"TERM", SIGTERM}, {"USR1", SIGUSR1},
               {"USR2", SIGUSR2}, {"STOP", SIGSTOP}, {"CONT", SIGCONT}, {"WINCH", SIGWINCH}, {"ABRT", SIGABRT}};
  if (strncmp(text, "SIG", 3) == 0) text += 3;
  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
    if (strcmp(text, names[i].name) == 0) return names[i].number;
  char *end;
  long number = strtol(text, &end, 10);
  return *text && !*end && number > 0 && number < NSIG ? (int)number : -1;
}

static int end(const char *name, const char *signal_text) {
  struct hold_info info;
  int number = signal_text ? signal_number(signal_text) : 0;
  if (number < 0) return fail_usage("no such signal");
  return ask(name, HOLD_KILL, &number, sizeof number, &info) == 0 ? 0 : missing(name);
}

/* ---- the command line ---- */

static bool take_size(char **arguments, int *at, int count, const char *flag, uint16_t *value) {
  size_t length = strlen(flag);
  const char *text = NULL;
  if (strncmp(arguments[*at], flag, length) != 0) return false;
  if (arguments[*at][length] == '=') text = arguments[*at] + length + 1;
  else if (arguments[*at][length] == 0 && *at + 1 < count) text = arguments[++*at];
  char *rest = NULL;
  long number = text ? strtol(text, &rest, 10) : 0;
  if (!text || *rest || number < 1 || number > 10000) exit(fail_usage("a size is a number from 1 to 10000"));
  *value = (uint16_t)number;
  return true;
}

int main(int count, char **arguments) {
  const char *command = count > 1 ? arguments[1] : "";
  const char *name = NULL;
  const char *signal_text = NULL;
  bool json = false;
  bool following = false;
  struct hold_options options = {0};
  signal(SIGPIPE, SIG_IGN);
  for (int i = 2; i < count; i++) {
    if (strcmp(arguments[i], "--") == 0) {
      if (i + 1 < count) options.command = arguments + i + 1;
      break;
    }
    if (strcmp(arguments[i], "--json") == 0) json = true;
    else if (strcmp(arguments[i], "-f") == 0 || strcmp(arguments[i], "--follow") == 0) following = true;
    else if (take_size(arguments, &i, count, "--cols", &options.size.columns) || take_size(arguments, &i, count, "--rows", &options.size.rows)) continue;
    else if (arguments[i][0] == '-' && arguments[i][1]) return fail_usage("no such flag");
    else if (!name) name = arguments[i];
    else if (!signal_text && strcmp(command, "kill") == 0) signal_text = arguments[i];
    else return fail_usage("too many words; a command comes after --");
  }
  if (strcmp(command, "help") == 0 || strcmp(command, "--help") == 0 || strcmp(command, "-h") == 0) {
    fputs(usage, stdout);
    return 0;
  }
  if (strcmp(command, "ls") == 0) return name ? fail_usage("ls takes no name") : list(json);
  static const char *const commands[] = {"attach", "run", "status", "logs", "log", "wait", "kill"};
  bool known = false;
  for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) known = known || strcmp(command, commands[i]) == 0;
  if (!known) return fail_usage(*command ? "no such command" : "a command is missing");
  if (!name) return fail_usage("a name is missing");
  if (!hold_name_good(name)) return fail_usage("a name has 1 to 64 letters, digits, . _ or -, and begins with none of . and -");
  options.name = name;
  options.terminal = strcmp(command, "attach") == 0;
  if (strcmp(command, "attach") == 0) return attach(&options);
  if (strcmp(command, "run") == 0) return options.command ? run(&options) : fail_usage("run wants a command after --");
  if (strcmp(command, "status") == 0) return status(name, json);
  if (strcmp(command, "wait") == 0) return follow(name, HOLD_WAIT);
  if (strcmp(command, "kill") == 0) return end(name, signal_text);
  return follow(name, following ? HOLD_FOLLOW : HOLD_LOGS);
}
