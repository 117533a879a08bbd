#include "modules.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base.h"

static void load(const char *directory, const char *name, const char *parameters) {
  char path[PATH_MOST];
  snprintf(path, sizeof path, "%s/%s", directory, name);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0 || (syscall(SYS_finit_module, fd, parameters, 0) != 0 && errno != EEXIST))
    log_line("module %s: %s", name, strerror(errno));
  if (fd >= 0) close(fd);
}

void modules_load(const char *directory) {
  static char list[16 * 1024];
  char path[PATH_MOST];
  snprintf(path, sizeof path, "%s/list", directory);
  if (read_file(path, list, sizeof list) < 0) {
    if (errno != ENOENT) log_line("cannot read %s: %s", path, strerror(errno));
    return;
  }
  char *rest = list;
  for (char *line; (line = strsep(&rest, "\n"));) {
    char *parameters = line;
    char *name = strsep(&parameters, " \t");
    if (*name && *name != '#') load(directory, name, parameters ? parameters : "");
  }
}
