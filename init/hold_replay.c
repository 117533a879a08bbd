#include "hold_replay.h"

#include <stdbool.h>
#include <string.h>

/* ECMA-48: what may come after ESC. A string (OSC, DCS, …) ends with BEL or ESC \. */
enum { PLAIN, ESCAPED, CONTROL, TITLE, TITLE_ESCAPED, DROPPED, DROPPED_ESCAPED, LONG_CONTROL };

static bool asks(const uint8_t *sequence, size_t length) {
  uint8_t final = sequence[length - 1];
  uint8_t first = length > 3 ? sequence[2] : 0;
  if (final == 'c' || final == 'n' || final == 'x') return true;
  if (final == 'p') return sequence[length - 2] == '$';
  if (final == 'q') return first == '>';
  if (final == 'u') return first == '?';
  /* Window operations below 11 change the window, from 11 on they report. */
  if (final == 't') return length > 4 && sequence[2] >= '1' && sequence[2] <= '2' && sequence[3] >= '0' && sequence[3] <= '9';
  return false;
}

static size_t release(struct hold_replay *replay, uint8_t *to) {
  size_t held = replay->held;
  memcpy(to, replay->sequence, held);
  replay->held = 0;
  return held;
}

static bool keep(struct hold_replay *replay, uint8_t byte) {
  if (replay->held == sizeof replay->sequence) return false;
  replay->sequence[replay->held++] = byte;
  return true;
}

size_t hold_replay_filter(struct hold_replay *replay, const uint8_t *from, size_t length, uint8_t *to) {
  size_t out = 0;
  for (size_t i = 0; i < length; i++) {
    uint8_t byte = from[i];
    switch (replay->state) {
      case PLAIN:
        if (byte == 0x1b) {
          replay->held = 0;
          keep(replay, byte);
          replay->state = ESCAPED;
        } else if (byte != 5) { /* ENQ is answered too */
          to[out++] = byte;
        }
        break;
      case ESCAPED:
        keep(replay, byte);
        if (byte == '[') {
          replay->state = CONTROL;
        } else if (byte == ']') {
          replay->state = TITLE;
          replay->question = 0;
        } else if (byte == 'P' || byte == '_' || byte == '^' || byte == 'X') {
          replay->state = DROPPED;
          replay->held = 0;
        } else if (byte == 'Z') {
          replay->state = PLAIN;
          replay->held = 0;
        } else {
          out += release(replay, to + out);
          replay->state = PLAIN;
        }
        break;
      case CONTROL:
        if (!keep(replay, byte)) {
          /* Longer than any question; a colour list, say. */
          out += release(replay, to + out);
          to[out++] = byte;
          replay->state = byte >= 0x40 && byte <= 0x7e ? PLAIN : LONG_CONTROL;
        } else if (byte >= 0x40 && byte <= 0x7e) {
          if (asks(replay->sequence, replay->held))
            replay->held = 0;
          else
            out += release(replay, to + out);
          replay->state = PLAIN;
        } else if (byte < 0x20) {
          /* A control character inside a sequence, or a sequence cut off: either way it is text again. */
          out += release(replay, to + out);
          replay->state = PLAIN;
        }
        break;
      case LONG_CONTROL:
        to[out++] = byte;
        if ((byte >= 0x40 && byte <= 0x7e) || byte < 0x20) replay->state = PLAIN;
        break;
      case TITLE:
        /* Titles come by the dozen and colours are asked for with `?`: held back short ones pass, others do not. */
        if (byte == '?') replay->question = 1;
        if (byte == 0x1b) {
          replay->state = TITLE_ESCAPED;
          break;
        }
        if (!keep(replay, byte)) {
          replay->held = 0;
          replay->state = byte == 7 ? PLAIN : DROPPED;
        } else if (byte == 7) {
          if (replay->question) replay->held = 0;
          out += release(replay, to + out);
          replay->state = PLAIN;
        }
        break;
      case TITLE_ESCAPED:
        if (replay->question || !keep(replay, 0x1b) || !keep(replay, byte)) replay->held = 0;
        out += release(replay, to + out);
        replay->state = PLAIN;
        break;
      case DROPPED:
        if (byte == 7)
          replay->state = PLAIN;
        else if (byte == 0x1b)
          replay->state = DROPPED_ESCAPED;
        break;
      default: /* DROPPED_ESCAPED */
        replay->state = byte == 0x1b ? DROPPED_ESCAPED : byte == '\\' ? PLAIN : DROPPED;
    }
  }
  return out;
}
