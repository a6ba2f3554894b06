// SPDX-License-Identifier: Apache-2.0
/*
 * Tells a health check of gRPC (grpc.health.v1.Health/Check) from a user by the first call of an
 * HTTP/2 connection: the preface, SETTINGS, what may come before a call, then a HEADERS frame. Like
 * probe.c it has no state: it looks at all bytes each time, and every split gives the same verdict.
 *
 * Header blocks are compressed (RFC 7541), and yet there is neither a table nor a decoder here:
 *
 * - The dynamic table is empty before a connection's first block, the only one that is looked at.
 *   What it refers to in that table has stood in it before, so a reference tells nothing new. (A
 *   name from there with another value may: but what is looked for may not come twice.)
 * - A string has one encoding in Huffman's code: what is looked for is compared as encoded.
 */
#define _GNU_SOURCE
#include "grpc.h"

#include <string.h>

#define BLOCK_MAX   1024  /* of a header block; a health check's has some 200 bytes */
#define FRAME_MAX   16384 /* before SETTINGS have said otherwise */
#define STATIC_LAST 61

enum frame { DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY };
#define CONTINUATION 9

#define ACK	     0x1
#define END_HEADERS  0x4
#define PADDED	     0x8
#define HAS_PRIORITY 0x20

static const char preface[ZP_H2_PREFACE + 1] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/* All as by default, so that nothing that a client does by them surprises the app. */
const char zp_h2_settings[ZP_H2_HEAD] = "\0\0\0\4\0\0\0\0";

/* What a health check says of itself: each of these once. */
enum field { METHOD, PATH, TYPE, FIELDS, OTHER = FIELDS };

struct word {
	const char *plain, *coded;
	size_t plain_size, coded_size;
};
#define WORD(plain, coded)                                                                         \
	{                                                                                          \
		plain, coded, sizeof(plain) - 1, sizeof(coded) - 1                                 \
	}

static const struct word names[FIELDS] = {
	[METHOD] = WORD(":method", "\xb9\x49\x53\x39\xe4"),
	[PATH] = WORD(":path", "\xb9\x58\xd3\x3f"),
	[TYPE] = WORD("content-type", "\x21\xea\x49\x6a\x4a\xc9\xf5\x59\x7f"),
};
static const struct word values[FIELDS] = {
	[METHOD] = WORD("POST", "\xd7\xab\x76\xff"),
	[PATH] = WORD("/grpc.health.v1.Health/Check",
		      "\x62\x6b\x2b\x22\xf3\x94\x74\x26\x75\xfb\x85\x7c\x65\x1d\x09\x9d\x8b\xd3"
		      "\x94\x9d\x7f"),
	[TYPE] = WORD("application/grpc", "\x1d\x75\xd0\x62\x0d\x26\x3d\x4c\x4d\x65\x64"),
};
static const struct word proto = WORD("application/grpc+proto", "\x1d\x75\xd0\x62\x0d\x26\x3d\x4c"
								"\x4d\x65\x64\xff\x75\xd8\x74\x9f");

struct cursor {
	const uint8_t *at, *end;
};

struct string {
	const uint8_t *bytes;
	size_t size;
	bool coded;
};

/* An integer, of which @bits are in the byte under the cursor. Return: false where it is cut off.
 */
static bool take_integer(struct cursor *cursor, unsigned int bits, uint32_t *ret_value)
{
	uint32_t mask = (1u << bits) - 1, value;
	unsigned int shift = 0;

	if (cursor->at == cursor->end)
		return false;
	value = *cursor->at++ & mask;
	if (value == mask) {
		do {
			if (cursor->at == cursor->end || shift > 14)
				return false; /* nothing here is larger than 2 MiB */
			value += (uint32_t)(*cursor->at & 0x7f) << shift;
			shift += 7;
		} while (*cursor->at++ & 0x80);
	}
	*ret_value = value;
	return true;
}

static bool take_string(struct cursor *cursor, struct string *ret_string)
{
	uint32_t size;
	bool coded;

	if (cursor->at == cursor->end)
		return false;
	coded = *cursor->at & 0x80;
	if (!take_integer(cursor, 7, &size) || size > (size_t)(cursor->end - cursor->at))
		return false;
	*ret_string = (struct string){.bytes = cursor->at, .size = size, .coded = coded};
	cursor->at += size;
	return true;
}

static bool is_word(const struct string *string, const struct word *word)
{
	size_t size = string->coded ? word->coded_size : word->plain_size;

	return string->size == size &&
	       memcmp(string->bytes, string->coded ? word->coded : word->plain, size) == 0;
}

/* Of a name in the tables. */
static enum field field_at(uint32_t index)
{
	switch (index) {
	case 2: /* GET */
	case 3: /* POST */
		return METHOD;
	case 4:
	case 5:
		return PATH;
	case 31:
		return TYPE;
	default:
		return OTHER;
	}
}

static enum field field_of(const struct string *name)
{
	enum field field = METHOD;

	while (field < FIELDS && !is_word(name, &names[field]))
		field++;
	return field;
}

static bool is_right(enum field field, const struct string *value)
{
	return is_word(value, &values[field]) || (field == TYPE && is_word(value, &proto));
}

/*
 * A field that is spelt out, its name perhaps by the tables.
 * @last: the last place in them
 *
 * Return: whether it can be read, and is as in a health check.
 */
static bool take_literal(struct cursor *cursor, unsigned int bits, uint32_t last,
			 unsigned int *found)
{
	struct string name, value;
	enum field field;
	uint32_t index;

	if (!take_integer(cursor, bits, &index) || index > last)
		return false;
	if (index == 0 && !take_string(cursor, &name))
		return false;
	if (!take_string(cursor, &value))
		return false;
	field = index ? field_at(index) : field_of(&name);
	if (field == OTHER)
		return true;
	*found |= 1u << field;
	return is_right(field, &value);
}

/* A field that is in the tables as it is. Return: as above. */
static bool take_indexed(struct cursor *cursor, uint32_t last, unsigned int *found)
{
	uint32_t index;

	if (!take_integer(cursor, 7, &index) || index == 0 || index > last)
		return false;
	if (field_at(index) == OTHER)
		return true;
	*found |= 1u << METHOD;
	return index == 3; /* GET, and the paths that are there, are wrong */
}

static bool is_check(const uint8_t *block, size_t size)
{
	struct cursor cursor = {block, block + size};
	uint32_t last = STATIC_LAST, ignored;
	unsigned int found = 0;
	bool good = true;
	uint8_t first;

	while (good && cursor.at < cursor.end) {
		first = *cursor.at;
		if (first & 0x80) {
			good = take_indexed(&cursor, last, &found);
		} else if (first & 0x40) {
			good = take_literal(&cursor, 6, last++, &found);
		} else if (first & 0x20) {
			good = take_integer(&cursor, 5, &ignored); /* of the table's size */
		} else {
			good = take_literal(&cursor, 4, last, &found);
		}
	}
	return good && found == (1u << FIELDS) - 1;
}

static uint32_t number(const uint8_t *bytes, int size)
{
	uint32_t value = 0;

	while (size-- > 0)
		value = value << 8 | *bytes++;
	return value;
}

/* zp_h2_frame() - the size of a whole frame. */
size_t zp_h2_frame(const uint8_t head[ZP_H2_HEAD])
{
	return ZP_H2_HEAD + number(head, 3);
}

/* zp_h2_is_ack() - whether it answers SETTINGS. */
bool zp_h2_is_ack(const uint8_t head[ZP_H2_HEAD])
{
	return head[3] == SETTINGS && head[4] & ACK && number(head, 3) == 0;
}

static uint32_t stream_of(const uint8_t *head)
{
	return number(head + 5, 4) & 0x7fffffff;
}

/* What is left of a HEADERS frame's payload without padding and priority. Return: whether it fits.
 */
static bool strip(uint8_t flags, const uint8_t **payload, size_t *size)
{
	size_t before = (flags & PADDED ? 1 : 0) + (flags & HAS_PRIORITY ? 5 : 0);
	size_t behind = flags & PADDED && *size ? **payload : 0;

	if (before + behind > *size)
		return false;
	*payload += before;
	*size -= before + behind;
	return true;
}

/* A HEADERS frame and those that continue it. */
static enum zp_verdict call(const uint8_t *at, const uint8_t *end, struct zp_grpc *ret_grpc)
{
	uint32_t stream = stream_of(at);
	uint8_t block[BLOCK_MAX], type = HEADERS, flags;
	const uint8_t *payload;
	size_t filled = 0, size;

	if (stream % 2 == 0)
		return ZP_PROBE_NO;
	do {
		if (end - at < ZP_H2_HEAD)
			return ZP_PROBE_MORE;
		if (at[3] != type || stream_of(at) != stream)
			return ZP_PROBE_NO;
		flags = at[4];
		payload = at + ZP_H2_HEAD;
		size = number(at, 3);
		if (size > FRAME_MAX)
			return ZP_PROBE_NO;
		if (size > (size_t)(end - payload))
			return ZP_PROBE_MORE;
		at = payload + size;
		if (type == HEADERS && !strip(flags, &payload, &size))
			return ZP_PROBE_NO;
		if (size > BLOCK_MAX - filled)
			return ZP_PROBE_NO;
		memcpy(block + filled, payload, size);
		filled += size;
		type = CONTINUATION;
	} while (!(flags & END_HEADERS));
	ret_grpc->stream = stream;
	return is_check(block, filled) ? ZP_PROBE_YES : ZP_PROBE_NO;
}

/* Whether it may come before a call; unknown ones are ignored, as RFC 9113 has it. */
static bool is_before_call(uint8_t type)
{
	return type != DATA && type != RST_STREAM && type != PUSH_PROMISE && type != CONTINUATION;
}

/*
 * zp_grpc_go_on() - what a client says that has asked nothing yet, from the beginning of a frame
 *
 * Return: MORE with @ret_grpc->waits set where all frames are whole.
 */
enum zp_verdict zp_grpc_go_on(const char *bytes, size_t size, struct zp_grpc *ret_grpc)
{
	const uint8_t *at = (const uint8_t *)bytes, *end = at + size;
	size_t frame;

	ret_grpc->waits = false;
	while (end - at >= ZP_H2_HEAD) {
		if (at[3] == HEADERS)
			return call(at, end, ret_grpc);
		frame = zp_h2_frame(at);
		if (!is_before_call(at[3]) || frame > ZP_H2_HEAD + FRAME_MAX)
			return ZP_PROBE_NO;
		if (frame > (size_t)(end - at))
			return ZP_PROBE_MORE;
		at += frame;
	}
	ret_grpc->waits = at == end;
	return ZP_PROBE_MORE;
}

/* zp_h2_begins() - whether bytes are, or begin with, HTTP/2's preface, as far as they go. */
bool zp_h2_begins(const char *bytes, size_t size)
{
	return memcmp(bytes, preface, size < ZP_H2_PREFACE ? size : ZP_H2_PREFACE) == 0;
}

/*
 * zp_grpc_classify() - what the first bytes of a connection are, for which zp_h2_begins()
 *
 * Return: as zp_grpc_go_on().
 */
enum zp_verdict zp_grpc_classify(const char *bytes, size_t size, struct zp_grpc *ret_grpc)
{
	const uint8_t *head = (const uint8_t *)bytes + ZP_H2_PREFACE;

	ret_grpc->waits = false;
	if (size < ZP_H2_PREFACE + ZP_H2_HEAD)
		return ZP_PROBE_MORE;
	if (head[3] != SETTINGS || head[4] & ACK)
		return ZP_PROBE_NO; /* not HTTP/2: the app shall say so */
	return zp_grpc_go_on((const char *)head, size - ZP_H2_PREFACE, ret_grpc);
}

/* The answer: that all is well, and that this connection serves no other call. */
static const struct {
	const char *bytes;
	size_t size, stream_at; /* 0: has none */
} frames[] = {
#define FRAME(bytes, stream_at)                                                                    \
	{                                                                                          \
		bytes, sizeof(bytes) - 1, stream_at                                                \
	}
	FRAME("\0\0\0\4\0\0\0\0\0", 0), /* SETTINGS, which may have been sent */
	FRAME("\0\0\0\4\1\0\0\0\0", 0), /* ACK */
	/* :status 200, content-type */
	FRAME("\0\0\x14\1\4\0\0\0\0\x88\x0f\x10\x10"
	      "application/grpc",
	      5),
	/* a message of two bytes: status = SERVING */
	FRAME("\0\0\7\0\0\0\0\0\0\0\0\0\0\2\x08\1", 5),
	FRAME("\0\0\x0f\1\5\0\0\0\0\0\x0bgrpc-status\1"
	      "0",
	      5),
	FRAME("\0\0\x08\7\0\0\0\0\0\0\0\0\0\0\0\0\0", ZP_H2_HEAD), /* GOAWAY */
};

/*
 * zp_grpc_answer() - to a health check
 * @greeted: zp_h2_settings has been sent
 *
 * Return: its size.
 */
size_t zp_grpc_answer(uint32_t stream, bool greeted, char answer[ZP_GRPC_ANSWER_MAX])
{
	size_t i, size = 0, at;
	int byte;

	for (i = greeted; i < sizeof(frames) / sizeof(frames[0]); i++) {
		memcpy(answer + size, frames[i].bytes, frames[i].size);
		at = size + frames[i].stream_at;
		for (byte = 0; frames[i].stream_at && byte < 4; byte++)
			answer[at + (size_t)byte] = (char)(stream >> (24 - 8 * byte));
		size += frames[i].size;
	}
	return size;
}
