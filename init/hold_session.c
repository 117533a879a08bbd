#include "hold_session.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "base.h"
#include "hold_replay.h"

/*
 * A session is `running` until its program ends, then `ended`. An ended session's holder stays while somebody still
 * has the program's output open (a server that a script left behind would otherwise die of SIGPIPE at its next line)
 * or is being told; then it writes its ended file and goes.
 *
 * Output goes into a ring. Everybody who reads it has a place in it, and one who falls behind by more than the ring
 * loses the beginning: nobody's slowness holds up the program or costs memory.
 */
enum {
  RING_BYTES = 512 * 1024,
  FLUSH_LIMIT_MS = 5000,
  RELEASE_TRIES = 10,
  CLIENT_INPUT = sizeof(struct hold_head) + HOLD_PAYLOAD_MOST,
  CLIENT_OUTPUT = sizeof(struct hold_head) + HOLD_PAYLOAD_MOST + 128,
};

enum wants { WANTS_NOTHING, WANTS_END, WANTS_OUTPUT, WANTS_LOGS };

struct client {
  int fd; /* -1: free */
  enum wants wants;
  bool attached;
  struct hold_size size; /* of its screen; 0 by 0 when it has none */
  bool done; /* told everything; closed when sent */
  uint64_t at;
  uint64_t replay_until;
  struct hold_replay replay;
  size_t input_length;
  size_t output_length;
  size_t output_sent;
  uint8_t input[CLIENT_INPUT];
  uint8_t output[CLIENT_OUTPUT];
};

static struct hold_info session;
static uint8_t *ring;
static uint64_t ring_end; /* of everything ever written */
static int listener = -1;
static int program = -1; /* the terminal's master, or the pipe's reading end */
static bool releasing;
static bool ever_attached;
static struct hold_size shown; /* the terminal's size, once somebody gave it one */
static uint64_t ended_at;
static struct client clients[HOLD_CLIENTS_MOST];
static uint8_t pending[HOLD_PAYLOAD_MOST]; /* typed, not taken by the program yet */
static size_t pending_length;

static uint64_t now_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static uint64_t ring_start(void) { return ring_end > RING_BYTES ? ring_end - RING_BYTES : 0; }

static void ring_add(const uint8_t *bytes, size_t length) {
  for (size_t done = 0; done < length;) {
    size_t at = (size_t)(ring_end % RING_BYTES);
    size_t part = length - done < RING_BYTES - at ? length - done : RING_BYTES - at;
    memcpy(ring + at, bytes + done, part);
    ring_end += part;
    done += part;
  }
  session.output_bytes = ring_end;
}

static size_t ring_read(uint64_t from, uint8_t *to, size_t most) {
  uint64_t length = ring_end - from;
  size_t at = (size_t)(from % RING_BYTES);
  if (length > most) length = most;
  if (length > RING_BYTES - at) length = RING_BYTES - at;
  memcpy(to, ring + at, (size_t)length);
  return (size_t)length;
}

/* Where a reader of everything begins: at a line's start, when the beginning of the output is gone. */
static uint64_t ring_first_line(void) {
  uint64_t start = ring_start();
  if (start == 0) return 0;
  for (uint64_t at = start; at < ring_end && at < start + 4096; at++)
    if (ring[at % RING_BYTES] == '\n') return at + 1;
  return start;
}

/* ---- the clients ---- */

static void put_message(struct client *client, uint32_t type, const void *payload, size_t length) {
  struct hold_head head = {.type = type, .length = (uint32_t)length};
  if (client->output_length + sizeof head + length > sizeof client->output) return;
  memcpy(client->output + client->output_length, &head, sizeof head);
  if (length > 0) memcpy(client->output + client->output_length + sizeof head, payload, length);
  client->output_length += sizeof head + length;
}

static void drop(struct client *client) {
  if (client->attached) session.attached--;
  close(client->fd);
  client->fd = -1;
}

static void set_size(const struct hold_size *size) {
  struct winsize window = {.ws_col = size->columns, .ws_row = size->rows};
  if (!session.terminal || program < 0 || size->columns == 0 || size->rows == 0) return;
  ioctl(program, TIOCSWINSZ, &window);
  shown = *size;
}

/*
 * Of several screens the one that somebody types at is looked at. What begins with ESC may be a terminal's own answer
 * to a question of the program, which all of them give.
 */
static void claim_size(const struct client *client, const uint8_t *typed, size_t length) {
  bool same = client->size.columns == shown.columns && client->size.rows == shown.rows;
  if (length > 0 && typed[0] != 0x1b && !same) set_size(&client->size);
}

/* The kernel says nothing when the size stays; a program that fills the screen should draw it again all the same. */
static void redraw(void) {
  pid_t group = program >= 0 ? tcgetpgrp(program) : -1;
  if (group > 0) kill(-group, SIGWINCH);
}

static void end_program(int number) {
  if (!session.running) return;
  pid_t group = session.terminal && program >= 0 ? tcgetpgrp(program) : -1;
  if (number <= 0) number = session.terminal ? SIGHUP : SIGTERM;
  if (group > 0 && group != session.pid) kill(-group, number);
  kill(-session.pid, number);
}

static void begin_reading(struct client *client, enum wants wants, bool replay) {
  client->wants = wants;
  client->at = ring_first_line();
  client->replay_until = replay ? ring_end : 0;
}

/* False: the client is to be dropped. */
static bool handle(struct client *client, uint32_t type, const uint8_t *payload, size_t length) {
  struct hold_size size = {0};
  int number = 0;
  if (length >= sizeof size) memcpy(&size, payload, sizeof size);
  if (length >= sizeof number) memcpy(&number, payload, sizeof number);
  switch (type) {
    case HOLD_ATTACH:
      if (client->wants != WANTS_NOTHING) return false;
      /* Whoever comes now wants the next session of this name; only the one who started this may be late. */
      if (!session.running && (ever_attached || !session.terminal)) return false;
      if (!session.terminal) {
        static const char text[] = "that session has no terminal; use: exe-hold logs -f";
        put_message(client, HOLD_ERROR, text, sizeof text - 1);
        client->done = true;
        return true;
      }
      client->attached = true;
      session.attached++;
      /* Whoever started the session has seen nothing yet: what its program asks, this terminal shall answer. */
      begin_reading(client, WANTS_OUTPUT, ever_attached);
      ever_attached = true;
      client->size = size;
      set_size(&size);
      redraw();
      return true;
    case HOLD_FOLLOW:
      begin_reading(client, WANTS_OUTPUT, session.terminal);
      return true;
    case HOLD_LOGS:
      begin_reading(client, WANTS_LOGS, session.terminal);
      client->replay_until = ring_end;
      return true;
    case HOLD_WAIT:
      client->wants = WANTS_END;
      return true;
    case HOLD_RESIZE:
      client->size = size;
      set_size(&size);
      return true;
    case HOLD_KILL:
      end_program(number);
      break;
    case HOLD_RELEASE:
      if (!session.running) releasing = true;
      break;
    case HOLD_INPUT:
      if (!client->attached || length > sizeof pending - pending_length) return client->attached;
      claim_size(client, payload, length);
      memcpy(pending + pending_length, payload, length);
      pending_length += length;
      return true;
    case HOLD_STATUS:
      break;
    default:
      return false;
  }
  put_message(client, HOLD_INFO, &session, sizeof session);
  client->done = true;
  return true;
}

/* Typed input is taken from one client only as fast as the program reads it. */
static bool may_read(const struct client *client) {
  return !client->done && (!client->attached || pending_length == 0);
}

static void read_client(struct client *client) {
  ssize_t n = read(client->fd, client->input + client->input_length, sizeof client->input - client->input_length);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (n <= 0) {
    drop(client);
    return;
  }
  client->input_length += (size_t)n;
}

static void take_messages(struct client *client) {
  while (client->fd >= 0 && may_read(client) && client->input_length >= sizeof(struct hold_head)) {
    struct hold_head head;
    memcpy(&head, client->input, sizeof head);
    if (head.length > HOLD_PAYLOAD_MOST) {
      drop(client);
      return;
    }
    size_t whole = sizeof head + head.length;
    if (client->input_length < whole) return;
    bool good = handle(client, head.type, client->input + sizeof head, head.length);
    client->input_length -= whole;
    memmove(client->input, client->input + whole, client->input_length);
    if (!good) drop(client);
  }
}

/* Puts the next piece of output, or the end, into an empty output buffer. */
static void fill(struct client *client) {
  static uint8_t piece[HOLD_PAYLOAD_MOST];
  static uint8_t filtered[HOLD_PAYLOAD_MOST + sizeof(((struct hold_replay *)0)->sequence)];
  if (client->done || client->wants == WANTS_NOTHING) return;
  if (client->wants != WANTS_END) {
    if (client->at < ring_start()) client->at = ring_first_line();
    uint64_t until = client->wants == WANTS_LOGS ? client->replay_until : ring_end;
    while (client->at < until && client->output_length == 0) {
      bool old = client->at < client->replay_until;
      uint64_t most = (old ? client->replay_until : until) - client->at;
      size_t length = ring_read(client->at, piece, most < sizeof piece ? (size_t)most : sizeof piece);
      client->at += length;
      if (old && session.terminal) {
        size_t left = hold_replay_filter(&client->replay, piece, length, filtered);
        if (left > 0) put_message(client, HOLD_OUTPUT, filtered, left);
      } else {
        put_message(client, HOLD_OUTPUT, piece, length);
      }
    }
    if (client->output_length > 0) return;
  }
  if (session.running && client->wants != WANTS_LOGS) return;
  put_message(client, HOLD_INFO, &session, sizeof session);
  client->done = true;
}

static void write_client(struct client *client) {
  while (client->fd >= 0) {
    if (client->output_sent == client->output_length) {
      client->output_sent = client->output_length = 0;
      bool was_done = client->done;
      fill(client);
      if (client->output_length == 0) {
        if (was_done) drop(client);
        return;
      }
    }
    ssize_t n = send(client->fd, client->output + client->output_sent, client->output_length - client->output_sent, MSG_NOSIGNAL);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) {
      drop(client);
      return;
    }
    client->output_sent += (size_t)n;
  }
}

static void add_client(int fd) {
  for (size_t i = 0; i < HOLD_CLIENTS_MOST; i++) {
    if (clients[i].fd >= 0) continue;
    struct client *client = &clients[i];
    client->wants = WANTS_NOTHING;
    client->attached = client->done = false;
    client->size = (struct hold_size){0};
    client->input_length = client->output_length = client->output_sent = 0;
    memset(&client->replay, 0, sizeof client->replay);
    client->fd = fd;
    return;
  }
  close(fd);
}

static void accept_client(void) {
  int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (fd >= 0) add_client(fd);
}

/* ---- the program ---- */

/* False when nothing more will come. */
static bool read_program(void) {
  static uint8_t bytes[16 * 1024];
  ssize_t n = read(program, bytes, sizeof bytes);
  if (n > 0) {
    ring_add(bytes, (size_t)n);
    return true;
  }
  return n < 0 && (errno == EAGAIN || errno == EINTR);
}

static void close_program(void) {
  close(program);
  program = -1;
}

static void write_program(void) {
  ssize_t n = write(program, pending, pending_length);
  if (n <= 0) return;
  pending_length -= (size_t)n;
  memmove(pending, pending + n, pending_length);
}

static void reap(void) {
  int status;
  for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
    if (pid != session.pid) continue;
    session.running = 0;
    session.ended_at_ms = now_ms();
    ended_at = uptime_ms();
    if (WIFSIGNALED(status))
      session.signal = WTERMSIG(status);
    else
      session.exit_code = WEXITSTATUS(status);
    /* What it wrote last is still in the pipe. A terminal is gone with its first program; a pipe may have heirs. */
    while (program >= 0) {
      struct pollfd ready = {.fd = program, .events = POLLIN};
      if (poll(&ready, 1, 0) <= 0 || !(ready.revents & POLLIN)) break;
      if (!read_program()) break;
    }
    if (session.terminal && program >= 0) close_program();
  }
}

/* ---- the holder ---- */

static void write_ended(void) {
  char path[PATH_MOST];
  char next[PATH_MOST];
  if (hold_path(path, sizeof path, session.name, "ended") != 0 || hold_path(next, sizeof next, session.name, "next") != 0) return;
  int fd = open(next, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
  if (fd < 0) return;
  bool good = write_all(fd, &session, sizeof session) == 0;
  /* A full disk costs the output, not the exit status. */
  for (uint64_t at = ring_first_line(); good && at < ring_end;) {
    uint8_t piece[4096];
    size_t length = ring_read(at, piece, sizeof piece);
    if (write_all(fd, piece, length) != 0) break;
    at += length;
  }
  close(fd);
  if (good) rename(next, path);
  else unlink(next);
}

static bool anybody_to_tell(void) {
  for (size_t i = 0; i < HOLD_CLIENTS_MOST; i++)
    if (clients[i].fd >= 0) return true;
  return false;
}

static bool may_go(void) {
  if (session.running) return false;
  if (releasing) return !anybody_to_tell() || uptime_ms() - ended_at > FLUSH_LIMIT_MS;
  if (program >= 0) return false;
  return !anybody_to_tell() || uptime_ms() - ended_at > FLUSH_LIMIT_MS;
}

_Noreturn static void hold(int signals) {
  while (!may_go()) {
    struct pollfd wait[3 + HOLD_CLIENTS_MOST];
    wait[0] = (struct pollfd){.fd = signals, .events = POLLIN};
    wait[1] = (struct pollfd){.fd = listener, .events = POLLIN};
    wait[2] = (struct pollfd){.fd = program, .events = (short)(POLLIN | (pending_length > 0 ? POLLOUT : 0))};
    for (size_t i = 0; i < HOLD_CLIENTS_MOST; i++) {
      struct client *client = &clients[i];
      write_client(client);
      short events = client->fd >= 0 && may_read(client) ? POLLIN : 0;
      if (client->output_length > client->output_sent) events |= POLLOUT;
      wait[3 + i] = (struct pollfd){.fd = client->fd, .events = events};
    }
    if (may_go()) break;
    poll(wait, 3 + HOLD_CLIENTS_MOST, session.running ? -1 : 1000);
    if (wait[2].revents & (POLLIN | POLLHUP | POLLERR) && program >= 0 && !read_program()) {
      if (session.terminal) {
        /* Nobody has the terminal open: perhaps only for now, so look again when the program has ended. */
        sleep_ms(5);
      } else {
        close_program();
      }
    }
    if (wait[2].revents & POLLOUT && program >= 0) write_program();
    if (wait[0].revents & POLLIN) {
      struct signalfd_siginfo ignored;
      while (read(signals, &ignored, sizeof ignored) > 0) {
      }
      reap();
    }
    if (wait[1].revents & POLLIN) accept_client();
    for (size_t i = 0; i < HOLD_CLIENTS_MOST; i++) {
      struct client *client = &clients[i];
      if (client->fd < 0 || client->fd != wait[3 + i].fd) continue;
      if (wait[3 + i].revents & POLLIN && may_read(client)) read_client(client);
      else if (wait[3 + i].revents & (POLLHUP | POLLERR)) drop(client);
      if (client->fd >= 0) take_messages(client);
    }
  }
  char path[PATH_MOST];
  /* Before the socket goes: whoever finds none looks for the ended file. */
  if (!releasing) write_ended();
  if (!releasing && hold_path(path, sizeof path, session.name, "sock") == 0) unlink(path);
  _exit(0);
}

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

static int open_terminal(const struct hold_size *size) {
  int master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
  if (master < 0) return -1;
  struct winsize window = {.ws_col = size->columns ? size->columns : 80, .ws_row = size->rows ? size->rows : 24};
  char name[64];
  int slave = -1;
  if (grantpt(master) == 0 && unlockpt(master) == 0 && ptsname_r(master, name, sizeof name) == 0)
    slave = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
  if (slave < 0) {
    close(master);
    return -1;
  }
  ioctl(slave, TIOCSWINSZ, &window);
  struct termios modes;
  if (tcgetattr(slave, &modes) == 0) {
    modes.c_iflag |= IUTF8;
    tcsetattr(slave, TCSANOW, &modes);
  }
  program = master;
  return slave;
}

static int start_program(const struct hold_options *options) {
  int terminal = -1;
  int ends[2] = {-1, -1};
  if (options->terminal)
    terminal = open_terminal(&options->size);
  else if (pipe2(ends, O_CLOEXEC) == 0)
    program = ends[0];
  if (program < 0) return -1;
  pid_t pid = fork();
  if (pid == 0) run_program(options, terminal, ends[1]);
  if (terminal >= 0) close(terminal);
  if (ends[1] >= 0) close(ends[1]);
  if (pid < 0) return -1;
  fcntl(program, F_SETFL, fcntl(program, F_GETFL) | O_NONBLOCK);
  session.pid = pid;
  return 0;
}

static void describe(const struct hold_options *options) {
  session.magic = HOLD_MAGIC;
  session.terminal = options->terminal;
  session.running = 1;
  session.started_at_ms = now_ms();
  snprintf(session.name, sizeof session.name, "%s", options->name);
  struct text command = {.at = session.command, .capacity = sizeof session.command - 1};
  for (size_t i = 0; options->command && options->command[i]; i++)
    text_print(&command, "%s%s", i ? " " : "", options->command[i]);
  session.command[sizeof session.command - 1] = 0;
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

/* Descriptors of an SSH session must not stay open here, or sshd would wait for them before it ends the session. */
static void close_others(int first_client) {
  for (int fd = STDERR_FILENO + 1; fd < 1024; fd++)
    if (fd != listener && fd != program && fd != first_client) close(fd);
}

_Noreturn static void become_holder(const struct hold_options *options, int first_client) {
  sigset_t watched;
  for (size_t i = 0; i < HOLD_CLIENTS_MOST; i++) clients[i].fd = -1;
  ring = malloc(RING_BYTES);
  describe(options);
  sigemptyset(&watched);
  sigaddset(&watched, SIGCHLD);
  sigprocmask(SIG_SETMASK, &watched, NULL);
  signal(SIGHUP, SIG_IGN);
  signal(SIGINT, SIG_IGN);
  signal(SIGQUIT, SIG_IGN);
  signal(SIGPIPE, SIG_IGN);
  if (!ring || start_program(options) != 0) {
    char path[PATH_MOST];
    if (hold_path(path, sizeof path, options->name, "sock") == 0) unlink(path);
    _exit(1);
  }
  close_others(first_client);
  add_client(first_client);
  int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  for (int fd = 0; fd <= STDERR_FILENO; fd++) dup2(null, fd);
  if (chdir("/") != 0) _exit(1);
  hold(signalfd(-1, &watched, SFD_NONBLOCK | SFD_CLOEXEC));
}

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

int hold_session_start(const struct hold_options *options) {
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
    become_holder(options, ends[1]);
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
  listener = -1;
  close(lock);
  return result;
}
