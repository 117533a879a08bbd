#include "mounts.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "base.h"

/* linux/mount.h */
enum { OPEN_TREE_CLONE_ = 1, MOVE_MOUNT_F_EMPTY_PATH_ = 4, MOVE_MOUNT_T_EMPTY_PATH_ = 0x40 };

static void mount_one(const char *type, const char *target, unsigned long flags, const char *options) {
  if (mkdir(target, 0755) != 0 && errno != EEXIST) log_line("cannot make %s: %s", target, strerror(errno));
  if (mount(type, target, type, flags, options) != 0 && errno != EBUSY)
    log_line("cannot mount %s: %s", target, strerror(errno));
}

void mount_api(void) {
  mount_one("devtmpfs", "/dev", MS_NOSUID, "mode=0755");
  log_open();
  mount_one("proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, "");
  mount_one("sysfs", "/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC, "");
  mount_one("tmpfs", "/run", MS_NOSUID | MS_NODEV, "mode=0755,size=20%");
  mount_one("devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "mode=0620,gid=5,ptmxmode=0666");
  mount_one("tmpfs", "/dev/shm", MS_NOSUID | MS_NODEV, "mode=1777");
  static const char *const links[][2] = {{"/proc/self/fd", "/dev/fd"},
                                         {"/proc/self/fd/0", "/dev/stdin"},
                                         {"/proc/self/fd/1", "/dev/stdout"},
                                         {"/proc/self/fd/2", "/dev/stderr"}};
  for (size_t i = 0; i < sizeof links / sizeof links[0]; i++)
    if (symlink(links[i][0], links[i][1]) != 0 && errno != EEXIST) log_line("cannot make %s", links[i][1]);
}

/* Deletes what lies on the initramfs itself; other filesystems, which st_dev tells apart, are left alone. */
static void empty_directory(int fd, dev_t device, int depth) {
  DIR *directory = fdopendir(fd);
  if (!directory) {
    close(fd);
    return;
  }
  for (struct dirent *entry; (entry = readdir(directory));) {
    if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
    struct stat found;
    if (fstatat(dirfd(directory), entry->d_name, &found, AT_SYMLINK_NOFOLLOW) != 0 || found.st_dev != device) continue;
    if (!S_ISDIR(found.st_mode)) {
      unlinkat(dirfd(directory), entry->d_name, 0);
      continue;
    }
    int inner = openat(dirfd(directory), entry->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (inner >= 0 && depth > 0)
      empty_directory(inner, device, depth - 1);
    else if (inner >= 0)
      close(inner);
    unlinkat(dirfd(directory), entry->d_name, AT_REMOVEDIR);
  }
  closedir(directory);
}

int mount_switch(const char *new_root) {
  static const char *const moved[] = {"/dev", "/proc", "/sys", "/run"};
  for (size_t i = 0; i < sizeof moved / sizeof moved[0]; i++) {
    char target[PATH_MOST];
    snprintf(target, sizeof target, "%s%s", new_root, moved[i]);
    /* An image made from a Dockerfile's "FROM scratch" has none of them. */
    if (mkdir(target, 0755) != 0 && errno != EEXIST) return -1;
    if (mount(moved[i], target, NULL, MS_MOVE, NULL) != 0) return -1;
  }
  struct stat old;
  int old_root = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (old_root < 0 || fstat(old_root, &old) != 0) return -1;
  if (chdir(new_root) != 0 || mount(".", "/", NULL, MS_MOVE, NULL) != 0 || chroot(".") != 0 || chdir("/") != 0) {
    int error = errno;
    close(old_root);
    errno = error;
    return -1;
  }
  empty_directory(old_root, old.st_dev, 8);
  return 0;
}

static bool is_directory(const char *path) {
  struct stat found;
  return stat(path, &found) == 0 && S_ISDIR(found.st_mode);
}

static int bind_modules(void) {
  struct utsname kernel;
  char source[PATH_MOST];
  if (uname(&kernel) != 0) return -1;
  snprintf(source, sizeof source, TOOLS "/lib/modules/%s", kernel.release);
  if (!is_directory(source)) {
    log_line("the tools disk has no modules for %s", kernel.release);
    return 0;
  }
  if (!is_directory("/lib/modules") && make_directories("/lib/modules") != 0) return -1;
  return mount(TOOLS "/lib/modules", "/lib/modules", NULL, MS_BIND, NULL);
}

int mount_tools(const char *device) {
  if (mkdir(TOOLS, 0755) != 0 && errno != EEXIST) return -1;
  if (mount(device, TOOLS, "erofs", MS_RDONLY | MS_NODEV, "") != 0) return -1;
  if (mount("exe", RUN, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=16m") != 0) return -1;
  /* Memory of its own for the session holder, which everybody may use: filling it must not keep keys out. */
  if (mkdir(RUN "/hold", 0755) != 0) return -1;
  if (mount("hold", RUN "/hold", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=1777,size=10%,nr_inodes=8192") != 0) return -1;
  if (bind_modules() != 0) log_line("cannot show the kernel's modules at /lib/modules: %s", strerror(errno));
  return 0;
}

int mount_bare_proc(void) {
  struct stat there;
  if (lstat(RUN "/bare/proc/self", &there) == 0) return 0;
  if (mkdir(RUN "/bare", 0700) != 0 && errno != EEXIST) return -1;
  if (mkdir(RUN "/bare/proc", 0555) != 0 && errno != EEXIST) return -1;
  return mount("proc", RUN "/bare/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, "");
}

/* mount(2) follows symbolic links; the newer calls do not have to. */
static int cover_link(const char *source, const char *target) {
  int from = (int)syscall(SYS_open_tree, AT_FDCWD, source, OPEN_TREE_CLONE_ | O_CLOEXEC);
  if (from < 0) return -1;
  int to = open(target, O_PATH | O_NOFOLLOW | O_CLOEXEC);
  long moved = to < 0 ? -1 : syscall(SYS_move_mount, from, "", to, "", MOVE_MOUNT_F_EMPTY_PATH_ | MOVE_MOUNT_T_EMPTY_PATH_);
  int error = errno;
  if (to >= 0) close(to);
  close(from);
  errno = error;
  return moved == 0 ? 0 : -1;
}

int mount_over(const char *source, const char *target) {
  struct stat shown;
  struct stat wanted;
  if (stat(source, &wanted) != 0) return -1;
  int present = lstat(target, &shown) == 0;
  if (present && shown.st_dev == wanted.st_dev && shown.st_ino == wanted.st_ino) return 0;
  if (present && S_ISLNK(shown.st_mode)) return cover_link(source, target);
  if (!present) {
    int fd = open(target, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
    if (fd < 0) return -1;
    close(fd);
  }
  return mount(source, target, NULL, MS_BIND, NULL);
}
