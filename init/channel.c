#include "channel.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base.h"

/* linux/vm_sockets.h */
struct vsock_address {
  sa_family_t family;
  unsigned short reserved;
  unsigned int port;
  unsigned int cid;
  unsigned char flags;
  unsigned char zero[3];
};
#define VSOCK_ANY_CID 0xffffffffU
#define VSOCK_HOST_CID 2U

/*
 * A port without a host on the other side is readable at once, with nothing, again and again (POLLHUP). These are the
 * pauses between two looks: short at first, for the boot's sake.
 */
enum { IDLE_FIRST_MS = 4, IDLE_MOST_MS = 250, SEND_LIMIT_MS = 2000 };

static void reset(struct channel *channel) {
  channel->greeted = false;
  channel->input_at = channel->input_length = 0;
  frame_reader_reset(&channel->reader);
}

static void init(struct channel *channel) {
  channel->listener = channel->fd = -1;
  channel->idle_ms = IDLE_FIRST_MS;
  reset(channel);
}

/* udev may be absent: the port is found by its name in sysfs, its node is the kernel's in devtmpfs. */
static int open_port(void) {
  DIR *directory = opendir("/sys/class/virtio-ports");
  int fd = -1;
  for (struct dirent *entry; directory && fd < 0 && (entry = readdir(directory));) {
    char path[PATH_MOST];
    char name[64];
    snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", entry->d_name);
    ssize_t length = read_file(path, name, sizeof name);
    if (length > 0 && name[length - 1] == '\n') length--;
    if (length <= 0 || !text_is(name, (size_t)length, AGENT_PORT_NAME)) continue;
    snprintf(path, sizeof path, "/dev/%s", entry->d_name);
    fd = open(path, O_RDWR | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
  }
  if (directory) closedir(directory);
  return fd;
}

static int listen_at(int family, const void *address, socklen_t length) {
  int fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return -1;
  if (bind(fd, address, length) == 0 && listen(fd, 4) == 0) return fd;
  int error = errno;
  close(fd);
  errno = error;
  return -1;
}

/* virtio 1.3, 5: device type 19 is a socket device. A kernel that has vsock without one would listen for nobody. */
static bool has_vsock(void) {
  DIR *directory = opendir("/sys/bus/virtio/devices");
  bool found = false;
  for (struct dirent *entry; directory && !found && (entry = readdir(directory));) {
    char path[PATH_MOST];
    char type[16];
    snprintf(path, sizeof path, "/sys/bus/virtio/devices/%s/device", entry->d_name);
    found = read_file(path, type, sizeof type) > 0 && strcmp(type, "0x0013\n") == 0;
  }
  if (directory) closedir(directory);
  return found;
}

int channel_open(struct channel *channel) {
  init(channel);
  channel->fd = open_port();
  if (channel->fd >= 0) return 0;
  if (!has_vsock()) return -1;
  struct vsock_address any = {.family = AF_VSOCK, .port = AGENT_VSOCK_PORT, .cid = VSOCK_ANY_CID};
  channel->listener = listen_at(AF_VSOCK, &any, sizeof any);
  return channel->listener >= 0 ? 0 : -1;
}

int channel_listen(struct channel *channel, const char *path) {
  init(channel);
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  if (strlen(path) >= sizeof address.sun_path) {
    errno = ENAMETOOLONG;
    return -1;
  }
  strcpy(address.sun_path, path);
  unlink(path);
  channel->listener = listen_at(AF_UNIX, &address, sizeof address);
  return channel->listener >= 0 ? 0 : -1;
}

void channel_inherit(struct channel *channel, int listener, int fd, int rest) {
  init(channel);
  channel->listener = listener;
  channel->fd = fd;
  channel->greeted = fd >= 0;
  if (rest < 0) return;
  ssize_t length = read(rest, channel->input, sizeof channel->input);
  channel->input_length = length > 0 ? (size_t)length : 0;
  close(rest);
}

int channel_rest(struct channel *channel) {
  int ends[2];
  size_t length = channel->input_length - channel->input_at;
  /* A frame that is half here: its beginning was used already, in the reader. */
  size_t held = channel->reader.held;
  if (length + held == 0 || length + held > sizeof channel->input || pipe(ends) != 0) return -1;
  write_all(ends[1], channel->reader.buffer, held);
  write_all(ends[1], channel->input + channel->input_at, length);
  close(ends[1]);
  return ends[0];
}

static void lose(struct channel *channel) {
  if (channel->listener >= 0 && channel->fd >= 0) {
    close(channel->fd);
    channel->fd = -1;
  }
  reset(channel);
}

static bool next_frame(struct channel *channel, struct frame *frame) {
  while (channel->input_at < channel->input_length) {
    size_t taken = 0;
    bool whole = frame_read(&channel->reader, channel->input + channel->input_at,
                            channel->input_length - channel->input_at, &taken, frame);
    channel->input_at += taken;
    if (whole) return true;
  }
  return false;
}

/*
 * Takes the host that knocks in place of the one before: a hypervisor that restored this machine may have forgotten
 * that connection, which then never ends. Never somebody in the machine itself, who could tell it who it is.
 */
static bool meet(struct channel *channel) {
  struct vsock_address from = {0};
  socklen_t length = sizeof from;
  int fd = accept4(channel->listener, (struct sockaddr *)&from, &length, SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (fd >= 0 && from.family == AF_VSOCK && from.cid != VSOCK_HOST_CID) {
    close(fd);
    fd = -1;
  }
  if (fd < 0) return false;
  lose(channel);
  channel->fd = fd;
  return true;
}

bool channel_receive(struct channel *channel, unsigned int timeout_ms, struct frame *frame) {
  uint64_t until = uptime_ms() + timeout_ms;
  for (;;) {
    if (next_frame(channel, frame)) return true;
    uint64_t now = uptime_ms();
    int left = now >= until ? 0 : (int)(until - now);
    /* poll passes over what is not there. */
    struct pollfd wait[] = {{.fd = channel->fd, .events = POLLIN}, {.fd = channel->listener, .events = POLLIN}};
    int ready = poll(wait, 2, left);
    if (ready == 0) return false;
    if (ready < 0) {
      if (errno != EINTR) sleep_ms(IDLE_FIRST_MS);
      if (left == 0) return false;
      continue;
    }
    if (wait[1].revents != 0) {
      if (meet(channel)) continue;
      sleep_ms(IDLE_FIRST_MS);
      if (left == 0) return false;
      continue;
    }
    ssize_t length = read(channel->fd, channel->input, sizeof channel->input);
    if (length > 0) {
      channel->input_at = 0;
      channel->input_length = (size_t)length;
      channel->idle_ms = IDLE_FIRST_MS;
      continue;
    }
    if (length < 0 && (errno == EINTR || (errno == EAGAIN && !(wait[0].revents & POLLHUP)))) continue;
    lose(channel);
    if (channel->fd < 0) continue;
    if (left == 0) return false;
    sleep_ms(channel->idle_ms < (unsigned int)left ? channel->idle_ms : (unsigned int)left);
    if (channel->idle_ms < IDLE_MOST_MS) channel->idle_ms *= 2;
  }
}

bool channel_send(struct channel *channel) {
  size_t length = frame_finish(&channel->writer);
  const uint8_t *at = channel->writer.stuffed;
  if (channel->fd < 0 || length == 0) return false;
  uint64_t until = uptime_ms() + SEND_LIMIT_MS;
  while (length > 0) {
    ssize_t n = write(channel->fd, at, length);
    if (n > 0) {
      at += n;
      length -= (size_t)n;
      until = uptime_ms() + SEND_LIMIT_MS;
      continue;
    }
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno != EAGAIN) return false;
    uint64_t now = uptime_ms();
    if (now >= until) return false;
    struct pollfd wait = {.fd = channel->fd, .events = POLLOUT};
    poll(&wait, 1, (int)(until - now));
    /* Without a host a port is never writable but hung up, which ends poll at once. */
    if (wait.revents & POLLHUP) return false;
  }
  return true;
}
