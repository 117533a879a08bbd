#include "service.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base.h"
#include "mounts.h"

/*
 * The file: user, group, directory, number of arguments, arguments, variables, each closed by a zero. It holds what the
 * machine's owner gave it as secrets, and so is root's alone.
 */
#define KEPT RUN "/service"

enum { KEPT_MOST = FRAME_MOST, WORDS_MOST = 1024, DELAY_FIRST_MS = 1000, DELAY_MOST_MS = 60000, LIVED_MS = 60000 };

static char default_path[] = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:" TOOLS "/bin";

static char kept[KEPT_MOST];
static char *arguments[WORDS_MOST];
static char *environment[WORDS_MOST];
static uid_t uid;
static gid_t gid;
static char *directory;
static pid_t running = -1;
static uint64_t started_at;
static uint64_t start_at;
static unsigned int delay_ms;
static bool due;

static void add_word(struct text *to, const void *bytes, size_t length) {
  text_add(to, bytes, length);
  text_add(to, "", 1);
}

int service_keep(const struct frame *frame) {
  static char buffer[KEPT_MOST];
  struct text text = {.at = buffer, .capacity = sizeof buffer};
  struct field field;
  char path[PATH_MOST];
  char number[24];
  unsigned int count = 0;
  for (size_t at = 0; field_next(frame, &at, &field);)
    if (field.tag == TAG_SERVICE_ARGUMENT) count++;
  in_root(path, sizeof path, KEPT);
  if (count == 0) return unlink(path) == 0 || errno == ENOENT ? 0 : -1;
  add_word(&text, number, (size_t)snprintf(number, sizeof number, "%lu", (unsigned long)field_number(frame, TAG_SERVICE_UID, 0)));
  add_word(&text, number, (size_t)snprintf(number, sizeof number, "%lu", (unsigned long)field_number(frame, TAG_SERVICE_GID, 0)));
  if (field_find(frame, TAG_SERVICE_DIRECTORY, &field)) add_word(&text, field.bytes, field.length);
  else add_word(&text, "/", 1);
  add_word(&text, number, (size_t)snprintf(number, sizeof number, "%u", count));
  for (size_t at = 0; field_next(frame, &at, &field);)
    if (field.tag == TAG_SERVICE_ARGUMENT) add_word(&text, field.bytes, field.length);
  for (size_t at = 0; field_next(frame, &at, &field);)
    if (field.tag == TAG_ENVIRONMENT) add_word(&text, field.bytes, field.length);
  if (text.overflow) {
    errno = E2BIG;
    return -1;
  }
  return write_file(path, text.at, text.length, 0600);
}

static char *next_word(char **at, const char *end) {
  char *word = *at;
  if (word >= end) return NULL;
  *at = word + strlen(word) + 1;
  return word;
}

/* What a container engine sets as well: the home of the user it runs as. */
static void add_home(size_t *count) {
  static char home[PATH_MOST];
  FILE *file = fopen("/etc/passwd", "re");
  snprintf(home, sizeof home, "HOME=/");
  for (struct passwd *entry; file && (entry = fgetpwent(file));)
    if (entry->pw_uid == uid && entry->pw_dir[0] == '/') {
      snprintf(home, sizeof home, "HOME=%s", entry->pw_dir);
      break;
    }
  if (file) fclose(file);
  environment[(*count)++] = home;
}

void service_load(void) {
  ssize_t length = read_file(KEPT, kept, sizeof kept);
  if (length <= 0) return;
  char *at = kept;
  const char *end = kept + length;
  char *user = next_word(&at, end);
  char *group = next_word(&at, end);
  directory = next_word(&at, end);
  char *count = next_word(&at, end);
  if (!user || !group || !directory || !count) return;
  uid = (uid_t)strtoul(user, NULL, 10);
  gid = (gid_t)strtoul(group, NULL, 10);
  size_t wanted = strtoul(count, NULL, 10);
  size_t have = 0;
  bool has_path = false;
  if (wanted == 0 || wanted > WORDS_MOST - 1) return;
  while (have < wanted && (arguments[have] = next_word(&at, end))) have++;
  if (have < wanted) return;
  have = 0;
  for (char *word; have < WORDS_MOST - 3 && (word = next_word(&at, end));) {
    environment[have++] = word;
    if (strncmp(word, "PATH=", 5) == 0) has_path = true;
  }
  if (!has_path) environment[have++] = default_path;
  add_home(&have);
  due = true;
}

_Noreturn static void become_service(void) {
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, NULL);
  setsid();
  int in = open("/dev/null", O_RDWR);
  int out = open("/dev/console", O_WRONLY | O_NOCTTY);
  if (in >= 0) dup2(in, STDIN_FILENO);
  dup2(out >= 0 ? out : in, STDOUT_FILENO);
  dup2(out >= 0 ? out : in, STDERR_FILENO);
  if (in > STDERR_FILENO) close(in);
  if (out > STDERR_FILENO) close(out);
  if (setgroups(0, NULL) != 0 || setgid(gid) != 0 || setuid(uid) != 0) _exit(126);
  if (chdir(directory) != 0 && chdir("/") != 0) _exit(126);
  /* execvpe looks along the PATH of its caller, and this one is the image's. */
  for (char **word = environment; *word; word++)
    if (strncmp(*word, "PATH=", 5) == 0) putenv(*word);
  execvpe(arguments[0], arguments, environment);
  dprintf(STDERR_FILENO, "berth: cannot start %s: %s\n", arguments[0], strerror(errno));
  _exit(127);
}

unsigned int service_run(void) {
  if (!due || running > 0) return 0;
  uint64_t now = uptime_ms();
  if (now < start_at) return (unsigned int)(start_at - now);
  /* A directory that the image names and has not is made, as container engines do. */
  struct stat found;
  if (stat(directory, &found) != 0 && make_directories(directory) == 0 && chown(directory, uid, gid) != 0)
    log_line("cannot give %s to its user: %s", directory, strerror(errno));
  started_at = now;
  running = fork();
  if (running == 0) become_service();
  if (running > 0) log_line("starting the image's own program, %s", arguments[0]);
  else start_at = now + DELAY_FIRST_MS;
  return running > 0 ? 0 : DELAY_FIRST_MS;
}

bool service_ended(pid_t pid, int status) {
  if (pid != running || pid <= 0) return false;
  running = -1;
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
    due = false;
    log_line("the image's own program has ended");
    return true;
  }
  uint64_t now = uptime_ms();
  delay_ms = now - started_at >= LIVED_MS || delay_ms == 0 ? DELAY_FIRST_MS : delay_ms * 2;
  if (delay_ms > DELAY_MOST_MS) delay_ms = DELAY_MOST_MS;
  start_at = now + delay_ms;
  if (WIFSIGNALED(status))
    log_line("the image's own program was ended by signal %d; starting it again in %u s", WTERMSIG(status), delay_ms / 1000);
  else
    log_line("the image's own program ended with status %d; starting it again in %u s", WEXITSTATUS(status), delay_ms / 1000);
  return true;
}
