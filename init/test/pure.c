/*
 * Drives the parts of exe-init that have no side effects, under the address and undefined-behaviour sanitizers.
 *   pure ip        each line of standard input is the value of ip=; prints what it means
 *   pure cmdline NAME      each line is a kernel command line; prints NAME's value
 *   pure frames    standard input is a byte stream; prints its frames
 *   pure environment       each line is NAME=value; prints it for sshd and for systemd
 *   pure replay    filters standard input, in pieces of one byte and at once, which must agree
 *   pure signals   each line is what /proc/1/exe and /proc/1/comm say; prints whether such an init is asked by signal
 *   pure fuzz SEED ROUNDS  random and mutated input for all of them
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../base.h"
#include "../cmdline.h"
#include "../environment.h"
#include "../frame.h"
#include "../hold_replay.h"
#include "../ip.h"
#include "../power.h"

static uint8_t input[1 << 20];

static size_t read_input(void) {
  size_t length = 0;
  for (ssize_t n; length < sizeof input && (n = read(0, input + length, sizeof input - length)) > 0;) length += (size_t)n;
  return length;
}

#define CHECK(condition)                                            \
  do {                                                              \
    if (!(condition)) {                                             \
      fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
      abort();                                                      \
    }                                                               \
  } while (0)

static void show_ip(const char *value) {
  struct ip_settings settings;
  char reason[256];
  char text[6][16];
  if (!ip_parse(value, &settings, reason, sizeof reason)) {
    printf("refused %s\n", reason);
    return;
  }
  printf("%s client=%s server=%s gateway=%s netmask=%s hostname=%s device=%s dns=%s,%s ntp=%s\n",
         settings.mode == IP_STATIC ? "static" : "off", ip_text(settings.client, text[0]), ip_text(settings.server, text[1]),
         ip_text(settings.gateway, text[2]), ip_text(settings.netmask, text[3]), settings.hostname, settings.device,
         ip_text(settings.dns[0], text[4]), ip_text(settings.dns[1], text[5]), settings.ntp);
}

static void show_signals(char *line) {
  char *name = line + strcspn(line, " ");
  char with_end[64];
  if (*name) *name++ = 0;
  snprintf(with_end, sizeof with_end, "%s\n", name);
  printf("%s\n", power_takes_signals(line, with_end) ? "signal" : "program");
}

static void show_frames(void) {
  static struct frame_reader reader;
  size_t length = read_input();
  /* One byte at a time is the hardest split there is. */
  for (size_t i = 0; i < length; i++) {
    struct frame frame;
    struct field field;
    size_t taken;
    if (!frame_read(&reader, input + i, 1, &taken, &frame)) continue;
    printf("%u %u", frame.type, frame.id);
    for (size_t at = 0; field_next(&frame, &at, &field);) {
      printf(" %u:", field.tag);
      for (size_t j = 0; j < field.length; j++) printf("%02x", field.bytes[j]);
    }
    printf("\n");
  }
}

static void show_environment(const char *assignment) {
  static char buffer[1 << 18];
  struct text text = {.at = buffer, .capacity = sizeof buffer};
  size_t length = strlen(assignment);
  if (!environment_good(assignment, length)) {
    printf("refused\n");
    return;
  }
  environment_for_sshd(&text, assignment, length);
  text_add(&text, "\n", 1);
  environment_for_systemd(&text, assignment, length);
  text_add(&text, "\n", 1);
  CHECK(!text.overflow);
  fwrite(text.at, 1, text.length, stdout);
}

static void show_replay(void) {
  static uint8_t whole[(1 << 20) + 64];
  size_t length = read_input();
  struct hold_replay at_once = {0};
  struct hold_replay by_byte = {0};
  size_t kept = hold_replay_filter(&at_once, input, length, whole);
  size_t at = 0;
  for (size_t i = 0; i < length; i++) {
    uint8_t piece[1 + sizeof by_byte.sequence];
    size_t n = hold_replay_filter(&by_byte, input + i, 1, piece);
    CHECK(at + n <= kept && memcmp(piece, whole + at, n) == 0);
    at += n;
  }
  CHECK(at == kept);
  fwrite(whole, 1, kept, stdout);
}

/* xorshift64*: the same rounds on every machine. */
static uint64_t seed;
static uint32_t any(void) {
  seed ^= seed >> 12;
  seed ^= seed << 25;
  seed ^= seed >> 27;
  return (uint32_t)((seed * 2685821657736338717ULL) >> 32);
}

static void fuzz_texts(void) {
  static const char *const seeds[] = {
      "10.42.0.7:10.42.0.1:10.42.0.1:255.255.0.0:demo:eth0:none:1.1.1.1:8.8.8.8:pool.ntp.org",
      "off", "dhcp", ":::::eth0:off", "1.2.3.4", "console=hvc0 ip=\"a b\" \"root=/dev/vda\" ip=x"};
  char text[600];
  snprintf(text, sizeof text, "%s", seeds[any() % 6]);
  size_t length = strlen(text);
  for (uint32_t changes = any() % 12; changes > 0 && length > 0; changes--) {
    size_t at = any() % length;
    switch (any() % 3) {
      case 0:
        text[at] = (char)(any() % 255 + 1);
        break;
      case 1:
        memmove(text + at, text + at + 1, length - at);
        length--;
        break;
      default:
        if (length + 8 >= sizeof text) break;
        memmove(text + at + 1, text + at, length - at + 1);
        text[at] = ":.0129\" a="[any() % 10];
        length++;
    }
  }
  /* On the heap and exactly as long as needed, so that a byte too far is seen. */
  char *exact = malloc(length + 1);
  CHECK(exact);
  memcpy(exact, text, length);
  exact[length] = 0;
  struct ip_settings settings;
  char reason[64];
  if (!ip_parse(exact, &settings, reason, sizeof reason))
    CHECK(strlen(reason) > 0);
  else if (settings.mode == IP_STATIC)
    CHECK(settings.client != 0);
  char value[16];
  cmdline_value(exact, "ip", value, sizeof value);
  cmdline_value(exact, "", value, sizeof value);
  environment_good(exact, length);
  free(exact);
}

static void fuzz_frames(void) {
  static struct frame_writer writer;
  static struct frame_reader reader;
  struct frame frame;
  struct field field;
  size_t taken;
  uint8_t bytes[700];
  frame_reader_reset(&reader);
  uint8_t type = (uint8_t)any();
  uint32_t id = any();
  frame_start(&writer, type, id);
  uint32_t fields = any() % 5;
  uint64_t sum = 0;
  for (uint32_t i = 0; i < fields; i++) {
    size_t length = any() % sizeof bytes;
    for (size_t j = 0; j < length; j++) sum += bytes[j] = any() % 4 == 0 ? 0 : (uint8_t)any();
    frame_bytes(&writer, (uint8_t)i, bytes, length);
  }
  size_t length = frame_finish(&writer);
  CHECK(length > 0);
  CHECK(memchr(writer.stuffed + 1, 0, length - 2) == NULL);
  /* Half a frame of a predecessor that died must cost nothing: the lone zero in front ends it. */
  size_t half = any() % length;
  while (half > 0 && !frame_read(&reader, writer.stuffed, half, &taken, &frame) && taken < half) {
  }
  bool got = false;
  for (size_t at = 0; at < length && !got; at += taken) {
    size_t part = 1 + any() % (length - at);
    got = frame_read(&reader, writer.stuffed + at, part, &taken, &frame);
  }
  CHECK(got && frame.type == type && frame.id == id);
  for (size_t at = 0; field_next(&frame, &at, &field);)
    for (size_t j = 0; j < field.length; j++) sum -= field.bytes[j];
  CHECK(sum == 0);
  /* A damaged one is dropped, whatever was hit. */
  frame_reader_reset(&reader);
  size_t hit = 1 + any() % (length - 2);
  uint8_t flip = (uint8_t)(1 + any() % 255);
  writer.stuffed[hit] ^= flip;
  for (size_t at = 0; at < length; at += taken)
    CHECK(!frame_read(&reader, writer.stuffed + at, length - at, &taken, &frame) || writer.stuffed[hit] == 0);
}

static void fuzz_replay(void) {
  static const char pieces[] = "\033\033\033[]P?c;0123456789nqtup$>\\\a\x05\x18m\r\nabc";
  uint8_t bytes[300];
  uint8_t out[sizeof bytes + 64];
  struct hold_replay replay = {0};
  size_t length = any() % sizeof bytes;
  for (size_t i = 0; i < length; i++) bytes[i] = (uint8_t)pieces[any() % (sizeof pieces - 1)];
  CHECK(hold_replay_filter(&replay, bytes, length, out) <= length + sizeof replay.sequence);
}

int main(int count, char **arguments) {
  const char *mode = count > 1 ? arguments[1] : "";
  static char line[1 << 17];
  if (strcmp(mode, "frames") == 0) show_frames();
  if (strcmp(mode, "replay") == 0) show_replay();
  if (strcmp(mode, "fuzz") == 0 && count == 4) {
    seed = strtoull(arguments[2], NULL, 10) | 1;
    for (long rounds = strtol(arguments[3], NULL, 10); rounds > 0; rounds--) {
      fuzz_texts();
      fuzz_replay();
      if (rounds % 8 == 0) fuzz_frames();
    }
    printf("done\n");
  }
  bool lines = strcmp(mode, "ip") == 0 || strcmp(mode, "cmdline") == 0 || strcmp(mode, "environment") == 0 ||
               strcmp(mode, "signals") == 0;
  while (lines && fgets(line, sizeof line, stdin)) {
    line[strcspn(line, "\n")] = 0;
    char value[64];
    if (strcmp(mode, "ip") == 0) show_ip(line);
    if (strcmp(mode, "environment") == 0) show_environment(line);
    if (strcmp(mode, "signals") == 0) show_signals(line);
    if (strcmp(mode, "cmdline") == 0 && count == 3)
      printf("%s\n", cmdline_value(line, arguments[2], value, sizeof value) ? value : "(none)");
  }
  return 0;
}
