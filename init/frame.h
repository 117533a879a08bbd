#ifndef BERTH_FRAME_H
#define BERTH_FRAME_H
/* Frames of the control channel, as protocol.h describes them. Pure: bytes in, bytes out. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "protocol.h"

/* Longest frame on the wire: one byte of stuffing in 254, the first code byte, the closing zero and a leading one. */
enum { STUFFED_MOST = FRAME_MOST + FRAME_MOST / 254 + 4 };

struct frame {
  uint8_t type;
  uint32_t id;
  const uint8_t *fields;
  size_t length;
};

struct field {
  uint8_t tag;
  const uint8_t *bytes;
  size_t length;
};

struct frame_reader {
  size_t held;
  bool skipping;
  uint8_t buffer[STUFFED_MOST];
};

/* Forgets what was read of an unfinished frame. */
void frame_reader_reset(struct frame_reader *reader);

/*
 * Takes bytes up to and including the first that completes a frame. *taken says how many were used; true means that
 * *frame is good until the next call. Damaged and oversized frames are dropped.
 */
bool frame_read(struct frame_reader *reader, const uint8_t *bytes, size_t length, size_t *taken, struct frame *frame);

/* Walks a frame's fields; *at begins at 0. False at the end. */
bool field_next(const struct frame *frame, size_t *at, struct field *field);

/* First field with that tag. */
bool field_find(const struct frame *frame, uint8_t tag, struct field *field);

/* A number field's value, or fallback when it is missing or not eight bytes long. */
uint64_t field_number(const struct frame *frame, uint8_t tag, uint64_t fallback);

/* A frame being written. Starting one resets it; overflow is remembered and makes frame_finish give 0. */
struct frame_writer {
  size_t length;
  bool overflow;
  uint8_t plain[FRAME_MOST];
  uint8_t stuffed[STUFFED_MOST];
};
void frame_start(struct frame_writer *writer, uint8_t type, uint32_t id);
void frame_bytes(struct frame_writer *writer, uint8_t tag, const void *bytes, size_t length);
void frame_text(struct frame_writer *writer, uint8_t tag, const char *text);
void frame_number(struct frame_writer *writer, uint8_t tag, uint64_t value);

/* Returns how many bytes of writer->stuffed go on the wire: a leading zero, the frame, its closing zero. */
size_t frame_finish(struct frame_writer *writer);

#endif
