#include "hold_session.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "base.h"
#include "hold_program.h"
#include "hold_replay.h"
#include "hold_ring.h"

/*
 * A session is `running` until its program ends, then `ended`. An ended session's holder stays while somebody still
 * has the program's output open (a server that a script left behind would otherwise die of SIGPIPE at its next line)
 * or is being told; then it writes its ended file and goes.
 *
 * Output goes into a ring. Everybody who reads it has a place in it, and one who falls behind by more than the ring
 * loses the beginning: nobody's slowness holds up the program or costs memory.
 */
enum {
  FLUSH_LIMIT_MS = 5000,
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
static struct hold_ring ring;
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
  client->at = hold_ring_first_line(&ring);
  client->replay_until = replay ? ring.end : 0;
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
      client->replay_until = ring.end;
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
    if (client->at < hold_ring_start(&ring)) client->at = hold_ring_first_line(&ring);
    uint64_t until = client->wants == WANTS_LOGS ? client->replay_until : ring.end;
    while (client->at < until && client->output_length == 0) {
      bool old = client->at < client->replay_until;
      uint64_t most = (old ? client->replay_until : until) - client->at;
      size_t length = hold_ring_read(&ring, client->at, piece, most < sizeof piece ? (size_t)most : sizeof piece);
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
    hold_ring_add(&ring, bytes, (size_t)n);
    session.output_bytes = ring.end;
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
  for (uint64_t at = hold_ring_first_line(&ring); good && at < ring.end;) {
    uint8_t piece[4096];
    size_t length = hold_ring_read(&ring, at, piece, sizeof piece);
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
  if (session.running || (program >= 0 && !releasing)) return false;
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

/* Descriptors of an SSH session must not stay open here, or sshd would wait for them before it ends the session. */
static void close_others(int first_client) {
  for (int fd = STDERR_FILENO + 1; fd < 1024; fd++)
    if (fd != listener && fd != program && fd != first_client) close(fd);
}

_Noreturn void hold_session_run(const struct hold_options *options, int socket_fd, int first_client) {
  sigset_t watched;
  for (size_t i = 0; i < HOLD_CLIENTS_MOST; i++) clients[i].fd = -1;
  listener = socket_fd;
  describe(options);
  sigemptyset(&watched);
  sigaddset(&watched, SIGCHLD);
  sigprocmask(SIG_SETMASK, &watched, NULL);
  signal(SIGHUP, SIG_IGN);
  signal(SIGINT, SIG_IGN);
  signal(SIGQUIT, SIG_IGN);
  signal(SIGPIPE, SIG_IGN);
  if (!hold_ring_make(&ring) || (program = hold_program_start(options, &session.pid)) < 0) {
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
