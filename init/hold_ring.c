#include "hold_ring.h"

#include <stdlib.h>
#include <string.h>

bool hold_ring_make(struct hold_ring *ring) {
  ring->bytes = malloc(HOLD_RING_BYTES);
  ring->end = 0;
  return ring->bytes != NULL;
}

void hold_ring_add(struct hold_ring *ring, const uint8_t *bytes, size_t length) {
  for (size_t done = 0; done < length;) {
    size_t at = (size_t)(ring->end % HOLD_RING_BYTES);
    size_t part = length - done < HOLD_RING_BYTES - at ? length - done : HOLD_RING_BYTES - at;
    memcpy(ring->bytes + at, bytes + done, part);
    ring->end += part;
    done += part;
  }
}

uint64_t hold_ring_start(const struct hold_ring *ring) {
  return ring->end > HOLD_RING_BYTES ? ring->end - HOLD_RING_BYTES : 0;
}

uint64_t hold_ring_first_line(const struct hold_ring *ring) {
  uint64_t start = hold_ring_start(ring);
  if (start == 0) return 0;
  for (uint64_t at = start; at < ring->end && at < start + 4096; at++)
    if (ring->bytes[at % HOLD_RING_BYTES] == '\n') return at + 1;
  return start;
}

size_t hold_ring_read(const struct hold_ring *ring, uint64_t from, uint8_t *to, size_t most) {
  uint64_t length = ring->end - from;
  size_t at = (size_t)(from % HOLD_RING_BYTES);
  if (length > most) length = most;
  if (length > HOLD_RING_BYTES - at) length = HOLD_RING_BYTES - at;
  memcpy(to, ring->bytes + at, (size_t)length);
  return (size_t)length;
}
