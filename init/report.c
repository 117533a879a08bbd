#include "report.h"

#include <ctype.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base.h"
#include "processors.h"

enum { LISTEN_STATE = 0x0a, PORTS_MOST = 256 };

struct listener {
  unsigned int port;
  bool loopback;
  uint64_t inode;
};

/* Calls back for every listening TCP socket until told to stop. See Documentation/networking/proc_net_tcp.rst. */
static void each_listener(bool (*visit)(const struct listener *listener, void *context), void *context) {
  static const char *const files[] = {"/proc/net/tcp", "/proc/net/tcp6"};
  bool more = true;
  for (size_t i = 0; i < 2 && more; i++) {
    FILE *file = fopen(files[i], "re");
    char line[256];
    while (file && more && fgets(line, sizeof line, file)) {
      char address[33];
      unsigned int state;
      unsigned long long inode;
      struct listener found;
      if (sscanf(line, " %*u: %32[0-9A-Fa-f]:%x %*[0-9A-Fa-f]:%*x %x %*s %*s %*s %*u %*d %llu", address, &found.port, &state, &inode) != 4)
        continue;
      /* Listeners come first in the table; what follows may be thousands of connections. */
      if (state != LISTEN_STATE) break;
      found.inode = inode;
      found.loopback = i == 0 ? strcmp(address + 6, "7F") == 0 : strcmp(address, "00000000000000000000000001000000") == 0;
      more = visit(&found, context);
    }
    if (file) fclose(file);
  }
}

struct ports {
  struct frame_writer *writer;
  int count;
};

static bool write_port(const struct listener *listener, void *context) {
  struct ports *ports = context;
  if (!listener->loopback) {
    frame_number(ports->writer, TAG_LISTENING_PORT, listener->port);
    ports->count++;
  }
  return ports->count < PORTS_MOST;
}

struct wanted {
  unsigned int port;
  struct listeners *found;
};

static bool keep_port(const struct listener *listener, void *context) {
  struct wanted *wanted = context;
  struct listeners *found = wanted->found;
  if (listener->port == wanted->port) found->inodes[found->count++] = listener->inode;
  return found->count < LISTENERS_MOST;
}

void report_listeners(unsigned int port, struct listeners *found) {
  struct wanted wanted = {.port = port, .found = found};
  found->count = 0;
  each_listener(keep_port, &wanted);
}

static void write_cpu(struct frame_writer *writer) {
  static char text[16 * 1024];
  if (read_file("/proc/stat", text, sizeof text) <= 0) return;
  /* user nice system idle iowait irq softirq steal; guest time is in user already */
  uint64_t value[8] = {0};
  char *at = text + strcspn(text, " ");
  for (size_t i = 0; i < 8; i++) value[i] = strtoull(at, &at, 10);
  uint64_t busy = value[0] + value[1] + value[2] + value[5] + value[6];
  long hertz = sysconf(_SC_CLK_TCK);
  frame_number(writer, TAG_CPU_BUSY_MS, busy * 1000 / (uint64_t)(hertz > 0 ? hertz : 100));
  frame_number(writer, TAG_CPU_COUNT, processors_count());
}

static uint64_t kilobytes_after(const char *text, const char *name) {
  const char *at = strstr(text, name);
  return at ? strtoull(at + strlen(name), NULL, 10) * 1024 : 0;
}

static void write_memory(struct frame_writer *writer) {
  char text[4096];
  if (read_file("/proc/meminfo", text, sizeof text) <= 0) return;
  frame_number(writer, TAG_MEMORY_TOTAL_BYTES, kilobytes_after(text, "MemTotal:"));
  frame_number(writer, TAG_MEMORY_AVAILABLE_BYTES, kilobytes_after(text, "MemAvailable:"));
}

static void write_load(struct frame_writer *writer) {
  char text[128];
  unsigned int whole;
  unsigned int part;
  if (read_file("/proc/loadavg", text, sizeof text) <= 0 || sscanf(text, "%u.%2u", &whole, &part) != 2) return;
  frame_number(writer, TAG_LOAD1_MILLI, (uint64_t)whole * 1000 + (uint64_t)part * 10);
}

static void write_card(struct frame_writer *writer) {
  static const struct {
    const char *name;
    uint8_t tag;
  } counters[] = {{"tx_bytes", TAG_TX_BYTES}, {"tx_packets", TAG_TX_PACKETS}, {"rx_bytes", TAG_RX_BYTES}, {"rx_packets", TAG_RX_PACKETS}};
  for (size_t i = 0; i < sizeof counters / sizeof counters[0]; i++) {
    char path[PATH_MOST];
    char text[32];
    snprintf(path, sizeof path, "/sys/class/net/eth0/statistics/%s", counters[i].name);
    if (read_file(path, text, sizeof text) > 0) frame_number(writer, counters[i].tag, strtoull(text, NULL, 10));
  }
}

static bool starts_with(const char *text, const char *prefix) {
  return strncmp(text, prefix, strlen(prefix)) == 0;
}

/* Programs get their parent's variables, and sshd gives its sessions this one. */
static bool has_ssh_variable(const char *pid) {
  static char variables[32 * 1024];
  char path[PATH_MOST];
  snprintf(path, sizeof path, "/proc/%s/environ", pid);
  ssize_t length = read_file(path, variables, sizeof variables);
  for (const char *at = variables; length > 0 && at < variables + length; at += strlen(at) + 1)
    if (starts_with(at, "SSH_CONNECTION=")) return true;
  return false;
}

/* sshd's own processes, sftp-server and the session holder serve a client; what the client does with them is counted elsewhere. */
static bool is_platform(const char *pid) {
  char path[PATH_MOST];
  char program[PATH_MOST];
  snprintf(path, sizeof path, "/proc/%s/exe", pid);
  ssize_t length = readlink(path, program, sizeof program - 1);
  if (length < 0) return true;
  program[length] = 0;
  return starts_with(program, "/exe/");
}

/* A login shell in the foreground of its own terminal waits for somebody to type. See proc_pid_stat(5). */
static bool is_waiting_shell(const char *pid) {
  char path[PATH_MOST];
  char text[1024];
  int group;
  int session;
  int terminal;
  int foreground;
  snprintf(path, sizeof path, "/proc/%s/cmdline", pid);
  if (read_file(path, text, sizeof text) <= 0 || text[0] != '-') return false;
  snprintf(path, sizeof path, "/proc/%s/stat", pid);
  if (read_file(path, text, sizeof text) <= 0) return false;
  const char *at = strrchr(text, ')');
  if (!at || sscanf(at, ") %*c %*d %d %d %d %d", &group, &session, &terminal, &foreground) != 4) return false;
  return session == atoi(pid) && terminal != 0 && foreground == group;
}

static void write_processes(struct frame_writer *writer) {
  DIR *directory = opendir("/proc");
  uint64_t count = 0;
  uint64_t over_ssh = 0;
  for (struct dirent *entry; directory && (entry = readdir(directory));) {
    const char *pid = entry->d_name;
    if (!isdigit((unsigned char)pid[0])) continue;
    count++;
    if (has_ssh_variable(pid) && !is_platform(pid) && !is_waiting_shell(pid)) over_ssh++;
  }
  if (directory) closedir(directory);
  frame_number(writer, TAG_PROCESS_COUNT, count);
  frame_number(writer, TAG_SSH_PROCESS_COUNT, over_ssh);
}

void report_write(struct frame_writer *writer) {
  struct statvfs root;
  write_cpu(writer);
  write_memory(writer);
  write_load(writer);
  write_card(writer);
  if (statvfs("/", &root) == 0) {
    frame_number(writer, TAG_DISK_TOTAL_BYTES, (uint64_t)root.f_blocks * root.f_frsize);
    frame_number(writer, TAG_DISK_FREE_BYTES, (uint64_t)root.f_bavail * root.f_frsize);
  }
  write_processes(writer);
  struct ports ports = {.writer = writer};
  each_listener(write_port, &ports);
}
