#ifndef BERTH_CHANNEL_H
#define BERTH_CHANNEL_H
/*
 * The control channel's transports behind one seam: a virtio-serial port (QEMU), a vsock listener (Cloud
 * Hypervisor), a Unix socket (tests). A port is opened and always "connected"; a listener has at most one client.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "frame.h"

struct channel {
  int listener; /* -1 for a port */
  int fd;       /* the port, or the client; -1 when there is none */
  bool greeted; /* the host said hello since it connected: it is there, and in step */
  unsigned int idle_ms;
  size_t input_at;
  size_t input_length;
  uint8_t input[4096];
  struct frame_reader reader;
  struct frame_writer writer;
};

/* Opens the transport that this machine has. 0, or -1 when there is none (yet). */
int channel_open(struct channel *channel);

/* Listens on a Unix socket instead. 0, or -1 with errno. */
int channel_listen(struct channel *channel, const char *path);

/*
 * Goes on with what an earlier program of this machine opened: the port or listener, its client (-1: none), and a
 * descriptor to read what that one had read but not used (-1: nothing).
 */
void channel_inherit(struct channel *channel, int listener, int fd, int rest);

/* Writes what was read but not used to a pipe for channel_inherit; returns its reading end or -1. */
int channel_rest(struct channel *channel);

/* Waits at most timeout_ms for a frame; true when there is one, good until the next call. Never spins. */
bool channel_receive(struct channel *channel, unsigned int timeout_ms, struct frame *frame);

/* Sends channel->writer's frame; gives up after two seconds without progress, because the host may be gone. */
bool channel_send(struct channel *channel);

#endif
