/*
 * exe-init: one binary, several roles.
 *   /init                      first stage, when it is PID 1 of the initramfs (stage_one.c)
 *   exe-init pid1 SUPERVISOR   PID 1 of an image without an init (pid1.c)
 *   @berth supervise …         keeps sshd and the agent alive (supervise.c)
 *   @berth agent …             answers the host (agent.c)
 *   exe-init agent --socket PATH --root DIRECTORY
 *                              a rehearsal of the agent, for tests: changes nothing outside DIRECTORY
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent.h"
#include "base.h"
#include "pid1.h"
#include "stage_one.h"
#include "supervise.h"

static struct agent agent;

static int rehearse(const char *path, const char *directory) {
  root_prefix = directory;
  agent.rehearsing = true;
  agent.sshd_seen = true;
  if (channel_listen(&agent.channel, path) == 0) agent_run(&agent);
  fprintf(stderr, "exe-init: %s: %s\n", path, strerror(errno));
  return 1;
}

static int run_agent(int count, char **arguments) {
  agent_init(&agent);
  if (count == 6 && strcmp(arguments[2], "--socket") == 0 && strcmp(arguments[4], "--root") == 0)
    return rehearse(arguments[3], arguments[5]);
  log_open();
  agent.identified = true;
  if (count == 6 && (atoi(arguments[2]) >= 0 || atoi(arguments[3]) >= 0)) {
    channel_inherit(&agent.channel, atoi(arguments[2]), atoi(arguments[3]), atoi(arguments[4]));
    snprintf(agent.stage, sizeof agent.stage, "%s", arguments[5]);
    agent_run(&agent);
  }
  snprintf(agent.stage, sizeof agent.stage, "identity");
  /* A port has one owner; a predecessor that was killed may still be on its way out. */
  for (int i = 0; channel_open(&agent.channel) != 0; i++) {
    if (i == 50) {
      log_line("the agent finds no control channel");
      return 1;
    }
    sleep_ms(100);
  }
  agent_born(&agent);
  agent_run(&agent);
}

int main(int count, char **arguments) {
  const char *role = count > 1 ? arguments[1] : "";
  if (strcmp(role, "agent") == 0) return run_agent(count, arguments);
  if (strcmp(role, "supervise") == 0 && count == 6) {
    log_open();
    supervise_run(arguments[2], arguments[3], arguments[4], arguments[5]);
  }
  if (strcmp(role, "pid1") == 0 && count == 3 && getpid() == 1) {
    log_open();
    pid1_run(atoi(arguments[2]));
  }
  if (getpid() == 1) stage_one_run();
  fprintf(stderr, "exe-init is the first program of a Berth machine and does nothing elsewhere.\n");
  return 2;
}
