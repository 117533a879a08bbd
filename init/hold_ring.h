#ifndef BERTH_HOLD_RING_H
#define BERTH_HOLD_RING_H
/*
 * The last HOLD_RING_BYTES of what a session's program wrote. Whoever reads it keeps a place of their own, a count of
 * bytes since the first one ever written; what is before the start is overwritten.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { HOLD_RING_BYTES = 512 * 1024 };

struct hold_ring {
  uint8_t *bytes;
  uint64_t end; /* of everything ever written */
};

/* False when there is no memory for it. */
bool hold_ring_make(struct hold_ring *ring);

void hold_ring_add(struct hold_ring *ring, const uint8_t *bytes, size_t length);

/* The first byte that is kept. */
uint64_t hold_ring_start(const struct hold_ring *ring);

/* Where a reader of everything begins: at a line's start, when the beginning of the output is gone. */
uint64_t hold_ring_first_line(const struct hold_ring *ring);

/* Copies what is kept from there on, at most that much; there may be more. Returns how much it is, 0 at the end. */
size_t hold_ring_read(const struct hold_ring *ring, uint64_t from, uint8_t *to, size_t most);

#endif
