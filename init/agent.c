#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base.h"
#include "disk.h"
#include "identity.h"
#include "processors.h"
#include "report.h"
#include "systemd.h"

/* linux/fs.h */
#define FIFREEZE ((int)_IOWR('X', 119, int))
#define FITHAW ((int)_IOWR('X', 120, int))

enum {
  SSH_PORT = 22,
  TICK_MS = 30000, /* nothing is due: a quiet machine should not wake for it */
  SSHD_TICK_MS = 20,
  RELOAD_LIMIT_MS = 120000, /* emulated beside twenty others: whoever is told too early is turned away */
  RELOAD_POLL_MS = 20,
  JOURNAL_RELOADS = 4,
  JOURNAL_MOST_MS = 10000,
  FREEZE_MOST_MS = 60000,
  POWER_DEFAULT_MS = 20000,
  POWER_MOST_MS = 300000,
  POWER_ASK_AGAIN_MS = 2000,
};

void agent_init(struct agent *agent) {
  agent->channel.listener = agent->channel.fd = -1;
  agent->frozen_fd = -1;
  strcpy(agent->stage, "kernel");
}

/*
 * The kernel makes its boot id when somebody reads it first. Nobody does before the identity has brought randomness: a
 * guest that waits for that may be a template, and everyone made of it would have the same.
 */
static const char *boot_id(const struct agent *agent, char *buffer, size_t capacity) {
  bool is_anybody = agent->booting && !agent->identified;
  ssize_t length = is_anybody ? 0 : read_file("/proc/sys/kernel/random/boot_id", buffer, capacity);
  if (length <= 0) buffer[0] = 0;
  buffer[strcspn(buffer, "\n")] = 0;
  return buffer;
}

static struct frame_writer *start(struct agent *agent, uint8_t type, uint32_t id) {
  frame_start(&agent->channel.writer, type, id);
  return &agent->channel.writer;
}

static void answer_error(struct agent *agent, uint32_t id, const char *message) {
  frame_text(start(agent, MSG_ERROR, id), TAG_MESSAGE, message);
  channel_send(&agent->channel);
}

static void answer_errno(struct agent *agent, uint32_t id, const char *what) {
  char message[160];
  snprintf(message, sizeof message, "cannot %s: %s", what, strerror(errno));
  answer_error(agent, id, message);
}

void agent_stage(struct agent *agent, const char *stage) {
  snprintf(agent->stage, sizeof agent->stage, "%s", stage);
  uint64_t now = uptime_ms();
  log_line("%s (%llu ms)", stage, (unsigned long long)now);
  if (!agent->channel.greeted) return;
  struct frame_writer *writer = start(agent, MSG_STAGE, 0);
  frame_text(writer, TAG_STAGE, stage);
  frame_number(writer, TAG_UPTIME_MS, now);
  channel_send(&agent->channel);
}

static bool host_is_there(const struct agent *agent) {
  struct pollfd wait = {.fd = agent->channel.fd, .events = POLLOUT};
  return agent->channel.fd >= 0 && poll(&wait, 1, 0) > 0 && !(wait.revents & POLLHUP);
}

static void say_born(struct agent *agent, uint32_t request) {
  char id[64];
  struct frame_writer *writer = start(agent, MSG_BORN, request);
  frame_text(writer, TAG_BOOT_ID, boot_id(agent, id, sizeof id));
  frame_text(writer, TAG_STAGE, agent->stage);
  channel_send(&agent->channel);
}

void agent_born(struct agent *agent) {
  if (host_is_there(agent)) say_born(agent, 0);
}

void agent_fatal(struct agent *agent, const char *reason, unsigned int limit_ms) {
  uint64_t until = uptime_ms() + limit_ms;
  /* A host that connects late still wants its hello answered first. */
  do agent_serve(agent, 20);
  while (!agent->channel.greeted && uptime_ms() < until);
  frame_text(start(agent, MSG_FATAL, 0), TAG_MESSAGE, reason);
  if (host_is_there(agent)) channel_send(&agent->channel);
}

static void hello(struct agent *agent, const struct frame *frame) {
  char id[64];
  struct utsname kernel;
  struct field nonce;
  struct frame_writer *writer = start(agent, MSG_OK, 0);
  if (field_find(frame, TAG_NONCE, &nonce)) frame_bytes(writer, TAG_NONCE, nonce.bytes, nonce.length);
  frame_number(writer, TAG_VERSION, PROTOCOL_VERSION);
  frame_text(writer, TAG_BOOT_ID, boot_id(agent, id, sizeof id));
  frame_text(writer, TAG_KERNEL, uname(&kernel) == 0 ? kernel.release : "");
  frame_text(writer, TAG_STAGE, agent->stage);
  frame_number(writer, TAG_IDENTIFIED, agent->identified);
  frame_number(writer, TAG_UPTIME_MS, uptime_ms());
  agent->channel.greeted = true;
  channel_send(&agent->channel);
}

static bool has_other(const struct listeners *now, const struct listeners *before) {
  for (size_t i = 0; i < now->count; i++) {
    bool is_known = false;
    for (size_t k = 0; k < before->count; k++) is_known |= now->inodes[i] == before->inodes[k];
    if (!is_known) return true;
  }
  return false;
}

/*
 * The supervisor passes the signal on to sshd, which reads its host key and its variables again; it starts itself anew
 * for that and listens on new sockets, an IPv4 one and an IPv6 one, closing the old ones one after the other. Whoever
 * asked must not connect to those.
 */
static void reload_sshd(void) {
  struct listeners before;
  struct listeners now;
  report_listeners(SSH_PORT, &before);
  uint64_t until = uptime_ms() + RELOAD_LIMIT_MS;
  kill(getppid(), SIGHUP);
  for (;;) {
    report_listeners(SSH_PORT, &now);
    if (has_other(&now, &before)) return;
    if (uptime_ms() >= until) break;
    sleep_ms(RELOAD_POLL_MS);
  }
  log_line("sshd does not come back with its new keys");
}

/*
 * The journal's start is work, of seconds where the guest is emulated, and whoever made the machine is about to sign in:
 * it waits some times as long as it took sshd to start.
 */
static void journal_waits(struct agent *agent, uint64_t reload_ms) {
  uint64_t wait_ms = reload_ms * JOURNAL_RELOADS;
  agent->journal_at = uptime_ms() + (wait_ms < JOURNAL_MOST_MS ? wait_ms : JOURNAL_MOST_MS);
}

static void begin_journal(struct agent *agent) {
  agent->journal_at = 0;
  systemd_begin_journal();
}

static void identify(struct agent *agent, const struct frame *frame) {
  char reason[256];
  struct identity_result result = {0};
  uint32_t id = frame->id;
  struct field field;
  bool is_running = !agent->booting && !agent->rehearsing;
  /* One that boots has not drawn its boot id yet, and has written nothing down. */
  bool is_new = is_running && field_find(frame, TAG_BOOT_ID, &field);
  char former[33];
  identity_machine_id(former);
  bool applied = identity_apply(frame, agent->rehearsing, &result, reason, sizeof reason);
  if (applied && is_new) applied = identity_begin(frame, former, reason, sizeof reason);
  if (!applied) {
    answer_error(agent, id, reason);
    return;
  }
  uint64_t reloads_at = uptime_ms();
  if (result.sshd_changed && is_running) reload_sshd();
  if (is_new) journal_waits(agent, uptime_ms() - reloads_at);
  if (result.services_changed && is_running) systemd_reload();
  agent->identified = true;
  frame_number(start(agent, MSG_OK, id), TAG_LOGIN_UID, result.login_uid);
  channel_send(&agent->channel);
}

static uint64_t thaw(struct agent *agent) {
  uint64_t now = uptime_ms();
  uint64_t left = agent->frozen_fd >= 0 && agent->thaw_at > now ? agent->thaw_at - now : 0;
  if (agent->frozen_fd < 0) return 0;
  if (!agent->rehearsing && ioctl(agent->frozen_fd, FITHAW, 0) != 0 && errno != EINVAL)
    log_line("cannot thaw the root filesystem: %s", strerror(errno));
  close(agent->frozen_fd);
  agent->frozen_fd = -1;
  return left;
}

static void freeze(struct agent *agent, const struct frame *frame) {
  uint64_t deadline_ms = field_number(frame, TAG_DEADLINE_MS, 0);
  if (deadline_ms == 0 || deadline_ms > FREEZE_MOST_MS) {
    answer_error(agent, frame->id, "a freeze lasts 1 to 60000 ms");
    return;
  }
  if (agent->frozen_fd < 0) {
    int fd = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || (!agent->rehearsing && ioctl(fd, FIFREEZE, 0) != 0)) {
      answer_errno(agent, frame->id, "freeze the root filesystem");
      if (fd >= 0) close(fd);
      return;
    }
    agent->frozen_fd = fd;
  }
  agent->thaw_at = uptime_ms() + deadline_ms;
  start(agent, MSG_OK, frame->id);
  channel_send(&agent->channel);
}

static void grow(struct agent *agent, const struct frame *frame) {
  uint64_t size_bytes = 0;
  if (agent->frozen_fd >= 0) {
    answer_error(agent, frame->id, "the root filesystem is frozen");
    return;
  }
  if (!agent->rehearsing && disk_grow("/dev/vda", "/", &size_bytes) != 0) {
    answer_errno(agent, frame->id, "grow the root filesystem");
    return;
  }
  frame_number(start(agent, MSG_OK, frame->id), TAG_SIZE_BYTES, size_bytes);
  channel_send(&agent->channel);
}

static void online(struct agent *agent, uint32_t id) {
  processors_online();
  frame_number(start(agent, MSG_OK, id), TAG_CPU_COUNT, processors_count());
  channel_send(&agent->channel);
}

static void shut_down(struct agent *agent, const struct frame *frame, enum power how) {
  uint64_t limit_ms = field_number(frame, TAG_LIMIT_MS, POWER_DEFAULT_MS);
  if (limit_ms > POWER_MOST_MS) limit_ms = POWER_MOST_MS;
  start(agent, MSG_OK, frame->id);
  channel_send(&agent->channel);
  start(agent, MSG_POWEROFF_BEGUN, 0);
  channel_send(&agent->channel);
  if (agent->rehearsing) return;
  thaw(agent);
  if (agent->booting) power_now(how);
  begin_journal(agent);
  agent->power = how;
  agent->power_at = uptime_ms() + limit_ms;
  agent->power_ask_at = 0;
}

static void report(struct agent *agent, uint32_t id) {
  struct frame_writer *writer = start(agent, MSG_OK, id);
  frame_text(writer, TAG_STAGE, agent->stage);
  frame_number(writer, TAG_UPTIME_MS, uptime_ms());
  report_write(writer);
  channel_send(&agent->channel);
}

static void handle(struct agent *agent, const struct frame *frame) {
  char reason[160];
  uint32_t id = frame->id;
  if (frame->type == MSG_HELLO) {
    hello(agent, frame);
    return;
  }
  /*
   * Meant for an earlier agent, or for this one by a host whose hello was forgotten with the host before it: the news
   * that one went and another came may arrive after what the other says. It greets again, and asks again.
   */
  if (!agent->channel.greeted) {
    say_born(agent, id);
    return;
  }
  switch (frame->type) {
    case MSG_PING:
      start(agent, MSG_OK, id);
      channel_send(&agent->channel);
      return;
    case MSG_IDENTIFY:
      identify(agent, frame);
      return;
    case MSG_KEYS:
      if (!identity_keys(frame, reason, sizeof reason)) {
        answer_error(agent, id, reason);
        return;
      }
      start(agent, MSG_OK, id);
      channel_send(&agent->channel);
      return;
    case MSG_FREEZE:
      freeze(agent, frame);
      return;
    case MSG_THAW: {
      uint64_t left = thaw(agent);
      frame_number(start(agent, MSG_OK, id), TAG_DEADLINE_MS, left);
      channel_send(&agent->channel);
      return;
    }
    case MSG_GROW:
      grow(agent, frame);
      return;
    case MSG_ONLINE:
      online(agent, id);
      return;
    case MSG_REPORT:
      report(agent, id);
      return;
    case MSG_POWEROFF:
      shut_down(agent, frame, POWER_OFF);
      return;
    case MSG_REBOOT:
      shut_down(agent, frame, POWER_REBOOT);
      return;
    default:
      answer_error(agent, id, "this machine's agent does not know that request");
  }
}

void agent_serve(struct agent *agent, unsigned int timeout_ms) {
  struct frame frame;
  if (channel_receive(&agent->channel, timeout_ms, &frame)) handle(agent, &frame);
}

/* What has a deadline. Returns how long nothing else is due. */
static unsigned int tick(struct agent *agent) {
  uint64_t now = uptime_ms();
  unsigned int wait_ms = TICK_MS;
  while (waitpid(-1, NULL, WNOHANG) > 0) {
  }
  if (agent->frozen_fd >= 0) {
    if (now >= agent->thaw_at) {
      log_line("nobody thawed the root filesystem in time");
      thaw(agent);
    } else if (agent->thaw_at - now < wait_ms) {
      wait_ms = (unsigned int)(agent->thaw_at - now);
    }
  }
  if (agent->journal_at != 0) {
    if (now >= agent->journal_at)
      begin_journal(agent);
    else if (agent->journal_at - now < wait_ms)
      wait_ms = (unsigned int)(agent->journal_at - now);
  }
  if (agent->power != POWER_NONE) {
    if (now >= agent->power_at) {
      log_line("the shutdown takes too long; switching off");
      power_now(agent->power);
    }
    /* Again and again: systemd has no ear for signals in the first moments of its life. */
    if (now >= agent->power_ask_at) {
      power_ask(agent->power);
      agent->power_ask_at = now + POWER_ASK_AGAIN_MS;
    }
    if (agent->power_at - now < wait_ms) wait_ms = (unsigned int)(agent->power_at - now);
  }
  if (!agent->sshd_seen) {
    wait_ms = SSHD_TICK_MS;
    struct listeners found;
    report_listeners(SSH_PORT, &found);
    if (found.count > 0) {
      agent->sshd_seen = true;
      agent_stage(agent, "sshd");
      agent_stage(agent, "init");
    }
  }
  return wait_ms;
}

void agent_run(struct agent *agent) {
  signal(SIGPIPE, SIG_IGN);
  signal(SIGTERM, SIG_IGN);
  signal(SIGHUP, SIG_IGN);
  /* An agent before this one may have held it. */
  if (!agent->rehearsing) systemd_begin_journal();
  for (;;) agent_serve(agent, tick(agent));
}
