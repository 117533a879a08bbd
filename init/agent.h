#ifndef BERTH_AGENT_H
#define BERTH_AGENT_H
/*
 * Answers the host. The first stage uses it to wait for the machine's identity; afterwards it is a process of its own
 * that does nothing else. It has no threads and no queue: one request, one answer, and deadlines that it looks at
 * between them.
 */
#include <stdbool.h>
#include <stdint.h>

#include "channel.h"
#include "power.h"

struct agent {
  struct channel channel;
  char stage[16];
  bool booting;    /* in the first stage: a shutdown needs no asking */
  bool identified; /* an IDENTIFY was carried out */
  bool rehearsing; /* in a test: nothing outside root_prefix is touched */
  bool sshd_seen;
  int frozen_fd; /* -1, or the root while it is frozen */
  uint64_t thaw_at;
  uint64_t journal_at; /* 0, or when the journal that waits begins */
  enum power power;
  uint64_t power_at;
  uint64_t power_ask_at;
};

/* An agent whose channel is not open yet. */
void agent_init(struct agent *agent);

/* Answers requests for at most timeout_ms; returns early after one was answered. */
void agent_serve(struct agent *agent, unsigned int timeout_ms);

/* Names the step that is done, on the console and to the host. */
void agent_stage(struct agent *agent, const char *stage);

/* Tells the host that this agent is new. */
void agent_born(struct agent *agent);

/* Tells the host why the machine gives up; waits at most limit_ms for the host to be there. */
void agent_fatal(struct agent *agent, const char *reason, unsigned int limit_ms);

/* The agent's process: serves for ever. */
_Noreturn void agent_run(struct agent *agent);

#endif
