#include "frame.h"

#include <string.h>

static uint32_t crc32(const uint8_t *bytes, size_t length) {
  uint32_t crc = 0xffffffffU;
  for (size_t i = 0; i < length; i++) {
    crc ^= bytes[i];
    for (int bit = 0; bit < 8; bit++) crc = (crc >> 1) ^ (0xedb88320U & (0U - (crc & 1)));
  }
  return ~crc;
}

static uint32_t get_u32(const uint8_t *at) {
  return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

static void put_u32(uint8_t *at, uint32_t value) {
  at[0] = (uint8_t)(value >> 24);
  at[1] = (uint8_t)(value >> 16);
  at[2] = (uint8_t)(value >> 8);
  at[3] = (uint8_t)value;
}

/* Undoes the stuffing in place; what comes out is never longer than what went in. False: malformed. */
static bool unstuff(uint8_t *bytes, size_t length, size_t *plain_length) {
  size_t from = 0;
  size_t to = 0;
  while (from < length) {
    size_t code = bytes[from++];
    if (code == 0 || code - 1 > length - from) return false;
    memmove(bytes + to, bytes + from, code - 1);
    to += code - 1;
    from += code - 1;
    if (code < 255 && from < length) bytes[to++] = 0;
  }
  *plain_length = to;
  return true;
}

static size_t stuff(const uint8_t *plain, size_t length, uint8_t *out) {
  size_t code_at = 0;
  size_t to = 1;
  uint8_t code = 1;
  for (size_t i = 0; i < length; i++) {
    if (plain[i] != 0) {
      out[to++] = plain[i];
      code++;
    }
    if (plain[i] == 0 || code == 255) {
      out[code_at] = code;
      code_at = to++;
      code = 1;
    }
  }
  out[code_at] = code;
  out[to++] = 0;
  return to;
}

/* A frame whose fields do not add up is as damaged as one with a wrong sum. */
static bool parse(uint8_t *bytes, size_t length, struct frame *frame) {
  size_t plain = 0;
  if (!unstuff(bytes, length, &plain) || plain < 9 || plain > FRAME_MOST) return false;
  if (crc32(bytes, plain - 4) != get_u32(bytes + plain - 4)) return false;
  frame->type = bytes[0];
  frame->id = get_u32(bytes + 1);
  frame->fields = bytes + 5;
  frame->length = plain - 9;
  size_t at = 0;
  while (at < frame->length) {
    if (frame->length - at < 5) return false;
    size_t size = get_u32(frame->fields + at + 1);
    if (size > frame->length - at - 5) return false;
    at += 5 + size;
  }
  return true;
}

void frame_reader_reset(struct frame_reader *reader) {
  reader->held = 0;
  reader->skipping = false;
}

bool frame_read(struct frame_reader *reader, const uint8_t *bytes, size_t length, size_t *taken, struct frame *frame) {
  for (*taken = 0; *taken < length;) {
    const uint8_t *rest = bytes + *taken;
    size_t left = length - *taken;
    const uint8_t *zero = memchr(rest, 0, left);
    size_t part = zero ? (size_t)(zero - rest) : left;
    if (part > sizeof reader->buffer - reader->held) reader->skipping = true;
    if (!reader->skipping) {
      memcpy(reader->buffer + reader->held, rest, part);
      reader->held += part;
    }
    if (!zero) {
      *taken = length;
      return false;
    }
    *taken += part + 1;
    size_t held = reader->held;
    bool good = !reader->skipping && held > 0;
    frame_reader_reset(reader);
    if (good && parse(reader->buffer, held, frame)) return true;
  }
  return false;
}

bool field_next(const struct frame *frame, size_t *at, struct field *field) {
  if (*at >= frame->length) return false;
  field->tag = frame->fields[*at];
  field->length = get_u32(frame->fields + *at + 1);
  field->bytes = frame->fields + *at + 5;
  *at += 5 + field->length;
  return true;
}

bool field_find(const struct frame *frame, uint8_t tag, struct field *field) {
  size_t at = 0;
  while (field_next(frame, &at, field))
    if (field->tag == tag) return true;
  return false;
}

uint64_t field_number(const struct frame *frame, uint8_t tag, uint64_t fallback) {
  struct field field;
  if (!field_find(frame, tag, &field) || field.length != 8) return fallback;
  return (uint64_t)get_u32(field.bytes) << 32 | get_u32(field.bytes + 4);
}

void frame_start(struct frame_writer *writer, uint8_t type, uint32_t id) {
  writer->overflow = false;
  writer->plain[0] = type;
  put_u32(writer->plain + 1, id);
  writer->length = 5;
}

void frame_bytes(struct frame_writer *writer, uint8_t tag, const void *bytes, size_t length) {
  /* Four bytes are kept for the sum. */
  if (length > FRAME_MOST || writer->length + 5 + length + 4 > FRAME_MOST) {
    writer->overflow = true;
    return;
  }
  writer->plain[writer->length] = tag;
  put_u32(writer->plain + writer->length + 1, (uint32_t)length);
  memcpy(writer->plain + writer->length + 5, bytes, length);
  writer->length += 5 + length;
}

void frame_text(struct frame_writer *writer, uint8_t tag, const char *text) {
  frame_bytes(writer, tag, text, strlen(text));
}

void frame_number(struct frame_writer *writer, uint8_t tag, uint64_t value) {
  uint8_t bytes[8];
  put_u32(bytes, (uint32_t)(value >> 32));
  put_u32(bytes + 4, (uint32_t)value);
  frame_bytes(writer, tag, bytes, sizeof bytes);
}

size_t frame_finish(struct frame_writer *writer) {
  if (writer->overflow) return 0;
  put_u32(writer->plain + writer->length, crc32(writer->plain, writer->length));
  writer->stuffed[0] = 0;
  return 1 + stuff(writer->plain, writer->length + 4, writer->stuffed + 1);
}
