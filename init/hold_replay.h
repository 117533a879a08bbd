#ifndef BERTH_HOLD_REPLAY_H
#define BERTH_HOLD_REPLAY_H
/*
 * Output that a terminal is shown again must not ask it anything: the answers would be typed into the program. This
 * takes out the sequences that terminals answer (device attributes and status reports, DECRQM, window and colour
 * queries, XTVERSION, kitty's keyboard query) and every DCS, APC and PM string. Pure, any split of the bytes.
 */
#include <stddef.h>
#include <stdint.h>

struct hold_replay {
  int state;
  size_t held;
  uint8_t sequence[64];
  int question; /* an OSC that ends with a question */
};

/* Writes what is left of from to to, which has room for length + sizeof sequence bytes. Returns how much that is. */
size_t hold_replay_filter(struct hold_replay *replay, const uint8_t *from, size_t length, uint8_t *to);

#endif
