#include "processors.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base.h"

#define PROCESSORS "/sys/devices/system/cpu"

static void take(const char *path) {
  char text[8];
  if (read_file(path, text, sizeof text) <= 0 || text[0] != '0') return;
  int fd = open(path, O_WRONLY | O_CLOEXEC);
  if (fd < 0 || write(fd, "1", 1) != 1) log_line("%s: %s", path, strerror(errno));
  if (fd >= 0) close(fd);
}

void processors_online(void) {
  char directory_path[PATH_MOST];
  DIR *directory = opendir(in_root(directory_path, sizeof directory_path, PROCESSORS));
  for (struct dirent *entry; directory && (entry = readdir(directory));) {
    char path[PATH_MOST];
    if (strncmp(entry->d_name, "cpu", 3) != 0 || !isdigit((unsigned char)entry->d_name[3])) continue;
    /* The first has no such file: it cannot be anything else. */
    snprintf(path, sizeof path, "%s/%s/online", directory_path, entry->d_name);
    take(path);
  }
  if (directory) closedir(directory);
}

uint64_t processors_count(void) { return (uint64_t)sysconf(_SC_NPROCESSORS_ONLN); }
