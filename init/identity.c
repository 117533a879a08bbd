#include "identity.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "environment.h"
#include "mounts.h"
#include "network.h"
#include "service.h"
#include "systemd.h"
#include "users.h"

/* linux/random.h */
struct entropy {
  int bits;
  int size;
  uint8_t bytes[256];
};
#define RNDADDENTROPY ((int)_IOW('R', 0x03, int[2]))
#define RNDRESEEDCRNG ((int)_IO('R', 0x07))

enum { ENTROPY_MOST = 256, CLOCK_TOLERANCE_MS = 250, TEXT_MOST = 320 * 1024, NAME_MOST = 63 };

#define DEFAULT_LANG "LANG=C.UTF-8"
/* The tools come last: an image without scp or sftp has them all the same, and nobody's own are hidden. */
#define DEFAULT_PATH "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:" TOOLS "/bin"

/* A file of an image's own in /etc hides one in /run that has its name. */
#define CONF "berth-machine.conf"

static char text_buffer[TEXT_MOST];

static bool fail(char *reason, size_t capacity, const char *what) {
  snprintf(reason, capacity, "cannot %s: %s", what, strerror(errno));
  return false;
}

static int put(const char *name, const void *bytes, size_t length, mode_t mode) {
  char path[PATH_MOST];
  return write_file(in_root(path, sizeof path, name), bytes, length, mode);
}

/* For files bound over others, whose inode must stay. */
static int put_shown(const char *name, const void *bytes, size_t length) {
  char path[PATH_MOST];
  return rewrite_file(in_root(path, sizeof path, name), bytes, length, 0644);
}

/* Whoever reads these does that at its start, and starting again has its price: only when they differ. */
static int put_changed(const char *name, const void *bytes, size_t length, mode_t mode, bool *changed) {
  static char old[TEXT_MOST];
  char path[PATH_MOST];
  ssize_t had = read_file(in_root(path, sizeof path, name), old, sizeof old);
  if (had >= 0 && (size_t)had == length && memcmp(old, bytes, length) == 0) return 0;
  *changed = true;
  return put(name, bytes, length, mode);
}

static int prepare(void) {
  static const char *const directories[] = {RUN "/ssh", RUN "/etc"};
  for (size_t i = 0; i < sizeof directories / sizeof directories[0]; i++) {
    char path[PATH_MOST];
    if (make_directories(in_root(path, sizeof path, directories[i])) != 0) return -1;
  }
  return 0;
}

static void show(const char *source, const char *target, bool rehearsing) {
  if (rehearsing) return;
  if (mount_over(source, target) != 0) log_line("cannot show %s at %s: %s", source, target, strerror(errno));
}

static bool name_good(const struct field *field, const char *also, size_t most) {
  if (field->length == 0 || field->length > most) return false;
  for (size_t i = 0; i < field->length; i++) {
    char c = (char)field->bytes[i];
    bool letter = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
    if (!letter && (c == 0 || !strchr(also, c) || (i == 0 && c == '-'))) return false;
  }
  return true;
}

/* A key is one line; anything else would be a line of its own in the file. */
static bool line_good(const struct field *field) {
  for (size_t i = 0; i < field->length; i++)
    if (field->bytes[i] < ' ' && field->bytes[i] != '\t') return false;
  return true;
}

static bool is_machine_id(const struct field *field) {
  if (field->length != 32) return false;
  for (size_t i = 0; i < 32; i++)
    if (!isxdigit(field->bytes[i]) || isupper(field->bytes[i])) return false;
  return true;
}

/* Everything is looked at before anything is changed. */
static const char *first_problem(const struct frame *frame) {
  struct field field;
  if (!field_find(frame, TAG_HOSTNAME, &field) || !name_good(&field, "-", NAME_MOST)) return "bad host name";
  if (!field_find(frame, TAG_LOGIN_USER, &field) || !name_good(&field, "-_.", 32) || isdigit(field.bytes[0]))
    return "bad login user";
  if (!field_find(frame, TAG_HOST_KEY, &field) || field.length < 64 || field.length > 16 * 1024) return "bad host key";
  if (!field_find(frame, TAG_MACHINE_ID, &field) || !is_machine_id(&field)) return "bad machine id";
  for (size_t at = 0; field_next(frame, &at, &field);) {
    if (field.tag == TAG_ENVIRONMENT && !environment_good((const char *)field.bytes, field.length)) return "bad variable";
    bool is_word = field.tag == TAG_SERVICE_ARGUMENT || field.tag == TAG_SERVICE_DIRECTORY;
    if (is_word && memchr(field.bytes, 0, field.length)) return "bad service";
    if ((field.tag == TAG_AUTHORIZED_KEY || field.tag == TAG_USER_AUTHORITY) && !line_good(&field)) return "bad key";
  }
  return NULL;
}

static int put_lines(const struct frame *frame, uint8_t tag, const char *name) {
  struct text lines = {.at = text_buffer, .capacity = sizeof text_buffer};
  struct field field;
  for (size_t at = 0; field_next(frame, &at, &field);) {
    if (field.tag != tag) continue;
    text_add(&lines, field.bytes, field.length);
    text_add(&lines, "\n", 1);
  }
  return put(name, lines.at, lines.length, 0644);
}

bool identity_keys(const struct frame *frame, char *reason, size_t capacity) {
  struct field field;
  for (size_t at = 0; field_next(frame, &at, &field);)
    if (field.tag == TAG_AUTHORIZED_KEY && !line_good(&field)) {
      snprintf(reason, capacity, "bad key");
      return false;
    }
  if (prepare() != 0 || put_lines(frame, TAG_AUTHORIZED_KEY, RUN "/ssh/authorized_keys") != 0)
    return fail(reason, capacity, "write the authorized keys");
  return true;
}

static void add_variables(const struct frame *frame, struct text *to, void (*add)(struct text *, const char *, size_t)) {
  struct field field;
  for (size_t at = 0; field_next(frame, &at, &field);)
    if (field.tag == TAG_ENVIRONMENT) add(to, (const char *)field.bytes, field.length);
}

static bool has_variable(const struct frame *frame, const char *name) {
  struct field field;
  for (size_t at = 0; field_next(frame, &at, &field);)
    if (field.tag == TAG_ENVIRONMENT && environment_names((const char *)field.bytes, field.length, name)) return true;
  return false;
}

static void add_session_variables(const struct frame *frame, struct text *to) {
  text_print(to, "SetEnv");
  if (!has_variable(frame, "LANG") && !has_variable(frame, "LC_ALL"))
    environment_for_sshd(to, DEFAULT_LANG, strlen(DEFAULT_LANG));
  if (!has_variable(frame, "PATH")) environment_for_sshd(to, DEFAULT_PATH, strlen(DEFAULT_PATH));
  add_variables(frame, to, environment_for_sshd);
}

/*
 * Only the first SetEnv line of a block counts (sshd_config(5)), so each block has everything on one. There is no PAM
 * and so no logind session: what pam_systemd would set for the login user, who lingers, is set here.
 */
static int put_session_variables(const struct frame *frame, const char *user, struct identity_result *result) {
  uid_t uid = result->login_uid;
  struct text text = {.at = text_buffer, .capacity = sizeof text_buffer};
  add_session_variables(frame, &text);
  if (uid != 0) {
    char line[128];
    text_print(&text, "\nMatch User %s\n  ", user);
    add_session_variables(frame, &text);
    snprintf(line, sizeof line, "XDG_RUNTIME_DIR=/run/user/%u", uid);
    if (!has_variable(frame, "XDG_RUNTIME_DIR")) environment_for_sshd(&text, line, strlen(line));
    snprintf(line, sizeof line, "DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/%u/bus", uid);
    if (!has_variable(frame, "DBUS_SESSION_BUS_ADDRESS")) environment_for_sshd(&text, line, strlen(line));
  }
  text_print(&text, "\n");
  if (text.overflow) {
    errno = E2BIG;
    return -1;
  }
  return put_changed(RUN "/ssh/session.conf", text.at, text.length, 0600, &result->sshd_changed);
}

static int put_service_variables(const struct frame *frame, bool *changed) {
  static const char *const names[] = {"/run/systemd/system.conf.d", "/run/systemd/user.conf.d"};
  struct text text = {.at = text_buffer, .capacity = sizeof text_buffer};
  text_print(&text, "[Manager]\nDefaultEnvironment=");
  add_variables(frame, &text, environment_for_systemd);
  text_print(&text, "\n");
  if (text.overflow) {
    errno = E2BIG;
    return -1;
  }
  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
    char path[PATH_MOST];
    char file[PATH_MOST];
    snprintf(file, sizeof file, "%s/" CONF, names[i]);
    if (make_directories(in_root(path, sizeof path, names[i])) != 0) return -1;
    if (put_changed(file, text.at, text.length, 0644, changed) != 0) return -1;
  }
  return 0;
}

/* True when the image resolves its own host name without /etc/hosts, which is then left to its user. */
static bool resolves_own_name(const char *hostname) {
  static char file[64 * 1024];
  char path[PATH_MOST];
  if (read_file(in_root(path, sizeof path, "/etc/nsswitch.conf"), file, sizeof file) > 0) {
    char *line = strstr(file, "hosts:");
    if (line) line[strcspn(line, "\n")] = 0;
    if (line && (line == file || line[-1] == '\n') && (strstr(line, "myhostname") || strstr(line, "resolve"))) return true;
  }
  if (read_file(in_root(path, sizeof path, "/etc/hosts"), file, sizeof file) <= 0) return false;
  char *rest = file;
  for (char *line; (line = strsep(&rest, "\n"));) {
    line[strcspn(line, "#")] = 0;
    for (char *word; (word = strsep(&line, " \t"));)
      if (strcmp(word, hostname) == 0) return true;
  }
  return false;
}

static int put_hosts(const char *hostname) {
  static char own[64 * 1024];
  char path[PATH_MOST];
  struct text text = {.at = text_buffer, .capacity = sizeof text_buffer};
  text_print(&text, "# This file is in memory: changes last until the machine restarts (see " RUN "/etc).\n");
  if (read_file(in_root(path, sizeof path, "/etc/hosts"), own, sizeof own) < 0)
    snprintf(own, sizeof own, "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
  char *rest = own;
  for (char *line; (line = strsep(&rest, "\n"));)
    if (*line && *line != '#' && strncmp(line, "127.0.1.1", 9) != 0) text_print(&text, "%s\n", line);
  text_print(&text, "127.0.1.1\t%s\n", hostname);
  return put_shown(RUN "/etc/hosts", text.at, text.length);
}

static int set_hostname(const char *hostname, bool rehearsing) {
  char path[PATH_MOST];
  char line[80];
  int length = snprintf(line, sizeof line, "%s\n", hostname);
  if (put_shown(RUN "/etc/hostname", line, (size_t)length) != 0) return -1;
  /* Without the file systemd keeps the kernel's name: nothing to show, nothing to create. */
  if (access(in_root(path, sizeof path, "/etc/hostname"), F_OK) == 0) show(RUN "/etc/hostname", "/etc/hostname", rehearsing);
  in_root(path, sizeof path, RUN "/etc/hosts");
  if (access(path, F_OK) == 0 || !resolves_own_name(hostname)) {
    if (put_hosts(hostname) != 0) return -1;
    show(RUN "/etc/hosts", "/etc/hosts", rehearsing);
  }
  return rehearsing ? 0 : sethostname(hostname, strlen(hostname));
}

static void set_clock(uint64_t clock_ms) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  int64_t off = (int64_t)clock_ms - ((int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000);
  if (off > -CLOCK_TOLERANCE_MS && off < CLOCK_TOLERANCE_MS) return;
  struct timespec right = {.tv_sec = (time_t)(clock_ms / 1000), .tv_nsec = (long)(clock_ms % 1000) * 1000000};
  if (clock_settime(CLOCK_REALTIME, &right) != 0) log_line("cannot set the clock: %s", strerror(errno));
}

/* Two restores of one template would otherwise draw the same random numbers. */
static void add_entropy(const struct field *field) {
  struct entropy pool = {.size = ENTROPY_MOST};
  if (field->length < ENTROPY_MOST) pool.size = (int)field->length;
  memcpy(pool.bytes, field->bytes, (size_t)pool.size);
  pool.bits = pool.size * 8;
  int fd = open("/dev/urandom", O_WRONLY | O_CLOEXEC);
  if (fd < 0 || ioctl(fd, RNDADDENTROPY, &pool) != 0 || ioctl(fd, RNDRESEEDCRNG) != 0)
    log_line("cannot add entropy: %s", strerror(errno));
  if (fd >= 0) close(fd);
}

static bool set_address(const struct field *field, bool rehearsing, char *reason, size_t capacity) {
  char value[512];
  struct ip_settings settings;
  if (field->length >= sizeof value) {
    snprintf(reason, capacity, "bad address");
    return false;
  }
  memcpy(value, field->bytes, field->length);
  value[field->length] = 0;
  if (!ip_parse(value, &settings, reason, capacity)) return false;
  identity_name_servers(&settings, rehearsing);
  return rehearsing || network_apply(&settings, reason, capacity) == 0;
}

static void copy_text(const struct frame *frame, uint8_t tag, char *to, size_t capacity) {
  struct field field;
  size_t length = field_find(frame, tag, &field) ? field.length : 0;
  if (length >= capacity) length = capacity - 1;
  if (length > 0) memcpy(to, field.bytes, length);
  to[length] = 0;
}

bool identity_apply(const struct frame *frame, bool rehearsing, struct identity_result *result, char *reason, size_t capacity) {
  struct field field;
  char hostname[NAME_MOST + 1];
  char login_user[33];
  const char *problem = first_problem(frame);
  if (problem) {
    snprintf(reason, capacity, "%s", problem);
    return false;
  }
  copy_text(frame, TAG_HOSTNAME, hostname, sizeof hostname);
  copy_text(frame, TAG_LOGIN_USER, login_user, sizeof login_user);
  if (prepare() != 0) return fail(reason, capacity, "make " RUN);
  if (!rehearsing) {
    uint64_t clock_ms = field_number(frame, TAG_CLOCK_MS, 0);
    if (clock_ms > 0) set_clock(clock_ms);
    if (field_find(frame, TAG_ENTROPY, &field)) add_entropy(&field);
  }
  if (user_ensure_system() != 0 || user_ensure(login_user, &result->login_uid) != 0)
    return fail(reason, capacity, "add the login user");
  struct text passwd = {.at = text_buffer, .capacity = sizeof text_buffer};
  if (users_with_shell(login_user, &passwd)) {
    if (put_shown(RUN "/etc/passwd", passwd.at, passwd.length) != 0) return fail(reason, capacity, "write the users");
    show(RUN "/etc/passwd", "/etc/passwd", rehearsing);
  }
  if (put_lines(frame, TAG_AUTHORIZED_KEY, RUN "/ssh/authorized_keys") != 0 ||
      put_lines(frame, TAG_USER_AUTHORITY, RUN "/ssh/user_authorities") != 0)
    return fail(reason, capacity, "write the keys");
  result->sshd_changed = result->services_changed = false;
  field_find(frame, TAG_HOST_KEY, &field);
  if (put_changed(RUN "/ssh/host_key", field.bytes, field.length, 0600, &result->sshd_changed) != 0)
    return fail(reason, capacity, "write the host key");
  if (put_session_variables(frame, login_user, result) != 0 || put_service_variables(frame, &result->services_changed) != 0)
    return fail(reason, capacity, "write the environment");
  if (service_keep(frame) != 0) return fail(reason, capacity, "keep what the image runs");
  if (set_hostname(hostname, rehearsing) != 0) return fail(reason, capacity, "set the host name");
  field_find(frame, TAG_MACHINE_ID, &field);
  char machine_id[33];
  memcpy(machine_id, field.bytes, 32);
  machine_id[32] = '\n';
  if (put_shown(RUN "/etc/machine-id", machine_id, sizeof machine_id) != 0)
    return fail(reason, capacity, "write the machine id");
  show(RUN "/etc/machine-id", "/etc/machine-id", rehearsing);
  if (field_find(frame, TAG_ADDRESS, &field) && !set_address(&field, rehearsing, reason, capacity)) return false;
  if (field_find(frame, TAG_COMMAND_LINE, &field)) {
    if (put_shown(RUN "/etc/cmdline", field.bytes, field.length) != 0)
      return fail(reason, capacity, "write the command line");
    if (!rehearsing && mount_bare_proc() != 0) log_line("cannot keep a bare /proc: %s", strerror(errno));
    show(RUN "/etc/cmdline", "/proc/cmdline", rehearsing);
  }
  return true;
}

void identity_machine_id(char id[33]) {
  char path[PATH_MOST];
  if (read_file(in_root(path, sizeof path, RUN "/etc/machine-id"), id, 33) != 32) id[0] = 0;
}

bool identity_begin(const struct frame *frame, const char *former_machine_id, char *reason, size_t capacity) {
  struct field field;
  char line[40];
  if (!field_find(frame, TAG_BOOT_ID, &field) || !name_good(&field, "-", 36) || field.length != 36) {
    snprintf(reason, capacity, "bad boot id");
    return false;
  }
  int length = snprintf(line, sizeof line, "%.36s\n", (const char *)field.bytes);
  if (put_shown(RUN "/etc/boot_id", line, (size_t)length) != 0) return fail(reason, capacity, "write the boot id");
  if (mount_bare_proc() != 0) log_line("cannot keep a bare /proc: %s", strerror(errno));
  show(RUN "/etc/boot_id", "/proc/sys/kernel/random/boot_id", false);
  if (former_machine_id[0]) systemd_hold_journal(former_machine_id);
  return true;
}

void identity_name_servers(const struct ip_settings *settings, bool rehearsing) {
  char address[16];
  char path[PATH_MOST];
  struct text text = {.at = text_buffer, .capacity = sizeof text_buffer};
  if (prepare() != 0) {
    log_line("cannot make " RUN ": %s", strerror(errno));
    return;
  }
  for (size_t i = 0; i < 2; i++)
    if (settings->dns[i] != 0) text_print(&text, "nameserver %s\n", ip_text(settings->dns[i], address));
  if (text.length > 0) {
    if (put_shown(RUN "/etc/resolv.conf", text.at, text.length) == 0)
      show(RUN "/etc/resolv.conf", "/etc/resolv.conf", rehearsing);
    /* Where systemd-resolved runs, programs may ask it over D-Bus and never look at the file. */
    text.length = 0;
    text_print(&text, "[Resolve]\nDNS=");
    for (size_t i = 0; i < 2; i++)
      if (settings->dns[i] != 0) text_print(&text, "%s%s", i ? " " : "", ip_text(settings->dns[i], address));
    text_print(&text, "\n");
    make_directories(in_root(path, sizeof path, "/run/systemd/resolved.conf.d"));
    put("/run/systemd/resolved.conf.d/" CONF, text.at, text.length, 0644);
  }
  if (settings->ntp[0]) {
    text.length = 0;
    text_print(&text, "[Time]\nNTP=%s\n", settings->ntp);
    make_directories(in_root(path, sizeof path, "/run/systemd/timesyncd.conf.d"));
    put("/run/systemd/timesyncd.conf.d/" CONF, text.at, text.length, 0644);
  }
}

void identity_tell_systemd(void) {
  static const char *const files[][2] = {
      /* udev would give eth0 a name of its own, networkd take its address away. */
      {"00-berth.link", "[Match]\nOriginalName=eth0\n[Link]\nNamePolicy=\nName=eth0\n"},
      {"00-berth.network", "[Match]\nName=eth0\n[Link]\nUnmanaged=yes\n"},
  };
  /* These would write a machine id kept in memory to the disk, or wait for a network nobody manages. */
  static const char *const masked[] = {"systemd-machine-id-commit.service", "systemd-networkd-wait-online.service"};
  /* Shutdown would unmount these under the running agent and sshd, in vain, and say so in red. */
  static const char *const kept[] = {"exe.mount", "exe-.mount", "etc-.mount", "lib-modules.mount", "usr-lib-modules.mount"};
  static const char keep[] = "[Unit]\nDefaultDependencies=no\n";
  char path[PATH_MOST];
  make_directories(in_root(path, sizeof path, "/run/systemd/network"));
  make_directories(in_root(path, sizeof path, "/run/systemd/system"));
  for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
    char name[PATH_MOST];
    snprintf(name, sizeof name, "/run/systemd/network/%s", files[i][0]);
    put(name, files[i][1], strlen(files[i][1]), 0644);
  }
  for (size_t i = 0; i < sizeof kept / sizeof kept[0]; i++) {
    char name[PATH_MOST];
    snprintf(name, sizeof name, "/run/systemd/system/%s.d", kept[i]);
    make_directories(in_root(path, sizeof path, name));
    snprintf(name, sizeof name, "/run/systemd/system/%s.d/berth.conf", kept[i]);
    put(name, keep, sizeof keep - 1, 0644);
  }
  for (size_t i = 0; i < sizeof masked / sizeof masked[0]; i++) {
    char name[PATH_MOST];
    snprintf(name, sizeof name, "/run/systemd/system/%s", masked[i]);
    if (symlink("/dev/null", in_root(path, sizeof path, name)) != 0 && errno != EEXIST) log_line("cannot mask %s", masked[i]);
  }
}
