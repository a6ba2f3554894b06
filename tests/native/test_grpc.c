// SPDX-License-Identifier: Apache-2.0
/*
 * Health checks of gRPC: the parser at every split, on what others may send and on random bytes.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "grpc.h"
#include "h2.h"

#define ROOM 4096
#define FUZZ 200000

struct text {
	char bytes[ROOM];
	size_t size;
};

static void add(struct text *text, const char *bytes, size_t size)
{
	memcpy(text->bytes + text->size, bytes, size);
	text->size += size;
}
#define ADD(text, literal) add(text, literal, sizeof(literal) - 1)

static void add_frame(struct text *text, char type, int flags, char stream, const char *payload,
		      size_t size)
{
	char head[ZP_H2_HEAD] = {(char)(size >> 16),
				 (char)(size >> 8),
				 (char)size,
				 type,
				 (char)flags,
				 0,
				 0,
				 0,
				 stream};

	add(text, head, sizeof(head));
	add(text, payload, size);
}

static struct text opening(void)
{
	struct text text = {.size = 0};

	ADD(&text, PREFACE SETTINGS);
	return text;
}

static struct text call_of(const char *block, size_t size)
{
	struct text text = opening();

	ADD(&text, ACK);
	add_frame(&text, 1, 4, 1, block, size);
	return text;
}
#define CALL_OF(literal) call_of(literal, sizeof(literal) - 1)

/* In memory of exactly that size, so that a read past the end is seen. */
static enum zp_verdict classify(const char *bytes, size_t size, struct zp_grpc *ret_grpc)
{
	char *exact = malloc(size ? size : 1);
	enum zp_verdict verdict;

	memcpy(exact, bytes, size);
	verdict = zp_grpc_classify(exact, size, ret_grpc);
	free(exact);
	return verdict;
}

/* Whether the verdict comes at the end and at no other split. */
static bool is(const struct text *text, enum zp_verdict verdict)
{
	struct zp_grpc grpc;
	size_t size;

	for (size = 0; size < text->size; size++)
		if (classify(text->bytes, size, &grpc) != ZP_PROBE_MORE)
			return false;
	return classify(text->bytes, text->size, &grpc) == verdict;
}

static void a_kubelets_call_at_every_split(void)
{
	struct text text = CALL_OF(CALL), with = opening();
	struct zp_grpc grpc;

	CHECK(is(&text, ZP_PROBE_YES));
	CHECK(classify(text.bytes, text.size, &grpc) == ZP_PROBE_YES && grpc.stream == 1);
	add_frame(&text, 0, 1, 1, "\0\0\0\0\0", 5);
	CHECK(classify(text.bytes, text.size, &grpc) == ZP_PROBE_YES);
	ADD(&with, WINDOW PING ACK GREASE);
	add_frame(&with, 1, 4, 5, CALL, sizeof(CALL) - 1);
	CHECK(is(&with, ZP_PROBE_YES));
	CHECK(classify(with.bytes, with.size, &grpc) == ZP_PROBE_YES && grpc.stream == 5);
}

static void whole_frames_without_a_call_wait(void)
{
	struct text text = opening();
	struct zp_grpc grpc = {0};
	size_t size;

	for (size = 0; size < text.size; size++) {
		CHECK(classify(text.bytes, size, &grpc) == ZP_PROBE_MORE && !grpc.waits);
		CHECK(zp_h2_begins(text.bytes, size));
	}
	CHECK(classify(text.bytes, text.size, &grpc) == ZP_PROBE_MORE && grpc.waits);
	ADD(&text, WINDOW);
	CHECK(classify(text.bytes, text.size - 1, &grpc) == ZP_PROBE_MORE && !grpc.waits);
	CHECK(classify(text.bytes, text.size, &grpc) == ZP_PROBE_MORE && grpc.waits);
	CHECK(!zp_h2_begins("PRI * HTTP/1", 12) && !zp_h2_begins("POST", 4));
}

static void every_spelling_of_a_call(void)
{
	static const char names[] = "\0\7:method\4POST\0\5:path\x1c" PATH "\x10\x0c"
				    "content-type\x10"
				    "application/grpc";
	static const char coded[] =
		"\0\x85\xb9\x49\x53\x39\xe4\x84\xd7\xab\x76\xff\0\x84\xb9\x58"
		"\xd3\x3f\x95" CODED "\0\x89\x21\xea\x49\x6a\x4a\xc9\xf5\x59\x7f"
		"\x16"
		"application/grpc+proto";
	static const char sizes[] = "\x20\x3f\xe1\x1f\x83\x04\x1c" PATH "\x0f\x10\x16"
				    "application/grpc+proto";
	/* x: y, which is 62 then, and again, and under another value; then one that is not there */
	static const char again[] = "\x83\x44\x95" CODED "\x40\1x\1y\xbe\x7e\1z\xbf" GRPC_TYPE;
	static const char none[] = "\x83\x44\x95" CODED "\x40\1x\1y\xc0" GRPC_TYPE;
	struct text text;

	text = call_of(names, sizeof(names) - 1);
	CHECK(is(&text, ZP_PROBE_YES));
	text = call_of(coded, sizeof(coded) - 1);
	CHECK(is(&text, ZP_PROBE_YES));
	text = call_of(sizes, sizeof(sizes) - 1);
	CHECK(is(&text, ZP_PROBE_YES));
	text = call_of(again, sizeof(again) - 1);
	CHECK(is(&text, ZP_PROBE_YES));
	text = call_of(none, sizeof(none) - 1);
	CHECK(is(&text, ZP_PROBE_NO));
}

static void padding_priority_and_continuations(void)
{
	static const char padded[] = "\3" CALL "\0\0\0", after[] = "\0\0\0\0\x10" CALL,
			  both[] = "\1\0\0\0\0\x10" CALL "\0", too_much[] = "\xff" CALL;
	struct text text = opening();
	size_t at, first;

	add_frame(&text, 1, 4 | 8, 1, padded, sizeof(padded) - 1);
	CHECK(is(&text, ZP_PROBE_YES));
	text = opening();
	add_frame(&text, 1, 4 | 0x20, 1, after, sizeof(after) - 1);
	CHECK(is(&text, ZP_PROBE_YES));
	text = opening();
	add_frame(&text, 1, 4 | 8 | 0x20, 1, both, sizeof(both) - 1);
	CHECK(is(&text, ZP_PROBE_YES));
	text = opening();
	add_frame(&text, 1, 4 | 8, 1, too_much, sizeof(too_much) - 1);
	CHECK(is(&text, ZP_PROBE_NO));
	text = opening();
	add_frame(&text, 1, 4 | 8, 1, "", 0);
	CHECK(is(&text, ZP_PROBE_NO));
	for (first = 0; first < sizeof(CALL); first++) {
		at = first + (sizeof(CALL) - 1 - first) / 2;
		text = opening();
		add_frame(&text, 1, 0, 1, CALL, first);
		add_frame(&text, 9, 0, 1, CALL + first, at - first);
		add_frame(&text, 9, 4, 1, CALL + at, sizeof(CALL) - 1 - at);
		CHECK(is(&text, ZP_PROBE_YES));
	}
}

static void others_are_users(void)
{
	static const struct {
		const char *block;
		size_t size;
	} blocks[] = {
#define BLOCK(literal) {literal, sizeof(literal) - 1}
		BLOCK(""),
		BLOCK("\x83\x44\x95" CODED),				     /* no type */
		BLOCK("\x83" GRPC_TYPE),				     /* no path */
		BLOCK("\x44\x95" CODED GRPC_TYPE),			     /* no method */
		BLOCK("\x82\x44\x95" CODED GRPC_TYPE),			     /* GET */
		BLOCK("\x83\x84" GRPC_TYPE),				     /* the path / */
		BLOCK("\x83\x44\x95" CODED "\x9f"),			     /* an empty type */
		BLOCK("\x83\x44\x1c/grpc.health.v1.Health/Watch" GRPC_TYPE), /* of another verb */
		BLOCK("\x83\x44\x1d" PATH "/" GRPC_TYPE),
		BLOCK("\x83\x44\x95" CODED "\x5f\x14"
		      "application/grpc-web"),
		BLOCK("\x83\x44\x96" CODED "\xff" GRPC_TYPE), /* more padding than there may be */
		BLOCK("\x83\x44\x95" CODED GRPC_TYPE "\x80"), /* index 0 */
		BLOCK("\x83\x44\x95" CODED GRPC_TYPE "\xff\xff\xff\xff\xff\x0f"),
		BLOCK("\x83\x44\x95" CODED GRPC_TYPE "\x40\1x\x7f\xff\xff"), /* cut off */
		BLOCK("\x83\x44\x95" CODED GRPC_TYPE "\x40"),
#undef BLOCK
	};
	struct text text;
	struct zp_grpc grpc;
	size_t i;

	for (i = 0; i < sizeof(blocks) / sizeof(blocks[0]); i++) {
		text = call_of(blocks[i].block, blocks[i].size);
		if (!zp_check(is(&text, ZP_PROBE_NO), "a user", __FILE__, __LINE__))
			fprintf(stderr, "block %zu\n", i);
	}
	text = opening();
	add_frame(&text, 0, 1, 1, "x", 1); /* data without a call */
	CHECK(classify(text.bytes, text.size, &grpc) == ZP_PROBE_NO);
	text = opening();
	add_frame(&text, 1, 4, 2, CALL, sizeof(CALL) - 1); /* a server's stream */
	CHECK(classify(text.bytes, text.size, &grpc) == ZP_PROBE_NO);
	text = opening();
	add_frame(&text, 1, 0, 1, CALL, 8);
	add_frame(&text, 9, 4, 3, CALL + 8, sizeof(CALL) - 1 - 8); /* of another stream */
	CHECK(classify(text.bytes, text.size, &grpc) == ZP_PROBE_NO);
	text = opening();
	add_frame(&text, 1, 0, 1, CALL, 8);
	ADD(&text, PING); /* between a block's frames */
	CHECK(classify(text.bytes, text.size, &grpc) == ZP_PROBE_NO);
	text = (struct text){.size = 0};
	ADD(&text, PREFACE PING);
	CHECK(classify(text.bytes, text.size, &grpc) == ZP_PROBE_NO);
	text = (struct text){.size = 0};
	ADD(&text, PREFACE ACK);
	CHECK(classify(text.bytes, text.size, &grpc) == ZP_PROBE_NO);
}

static void a_block_that_is_too_large_is_a_users(void)
{
	static const char large[1025] = {0};
	struct text text = opening();
	struct zp_grpc grpc;

	add_frame(&text, 1, 0, 1, CALL, sizeof(CALL) - 1);
	add_frame(&text, 9, 4, 1, large, sizeof(large) - (sizeof(CALL) - 1));
	CHECK(classify(text.bytes, text.size, &grpc) == ZP_PROBE_NO);
	text = opening();
	ADD(&text, "\xff\xff\xff\4\0\0\0\0\0");
	CHECK(classify(text.bytes, text.size, &grpc) == ZP_PROBE_NO);
}

/* Once it is decided it stays so, and nothing is read past the end. */
static void random_and_mutated_bytes(void)
{
	const struct text good = CALL_OF(CALL);
	enum zp_verdict verdict, before;
	unsigned int decided = 0, seed = 5;
	struct zp_grpc grpc;
	struct text text;
	size_t size, step;
	int i, changes;

	for (i = 0; i < FUZZ; i++) {
		text = good;
		for (changes = rand_r(&seed) % 6; changes >= 0; changes--)
			text.bytes[(size_t)rand_r(&seed) % text.size] = (char)rand_r(&seed);
		if (i % 4 == 0) /* behind the preface nothing is as it was */
			for (size = ZP_H2_PREFACE + ZP_H2_HEAD; size < text.size; size++)
				text.bytes[size] = (char)(rand_r(&seed) % (i % 8 ? 256 : 16));
		step = 1 + (size_t)rand_r(&seed) % 40;
		before = ZP_PROBE_MORE;
		for (size = 0; size <= text.size; size += step) {
			verdict = classify(text.bytes, size, &grpc);
			CHECK(before == ZP_PROBE_MORE || verdict == before);
			CHECK(verdict != ZP_PROBE_YES || grpc.stream % 2 == 1);
			before = verdict;
			if (size < text.size)
				zp_grpc_go_on(text.bytes + size, text.size - size, &grpc);
		}
		decided += before != ZP_PROBE_MORE;
	}
	CHECK(decided > FUZZ / 4); /* else nothing was tried */
}

static void the_answer_is_made_of_whole_frames(void)
{
	static const char types[] = "\4\4\1\0\1\7";
	char answer[ZP_GRPC_ANSWER_MAX], later[ZP_GRPC_ANSWER_MAX];
	size_t size = zp_grpc_answer(0x01020305, false, answer), at, i = 0;

	CHECK(size == ZP_GRPC_ANSWER_MAX);
	for (at = 0; at < size; at += zp_h2_frame((uint8_t *)answer + at))
		CHECK(i < sizeof(types) && answer[at + 3] == types[i++]);
	CHECK(at == size && i == 6);
	CHECK(memcmp(answer + 18 + 5, "\1\2\3\5", 4) == 0);
	CHECK(memcmp(answer + size - 8, "\1\2\3\5\0\0\0\0", 8) == 0);
	CHECK(zp_grpc_answer(0x01020305, true, later) == size - ZP_H2_HEAD);
	CHECK(memcmp(later, answer + ZP_H2_HEAD, size - ZP_H2_HEAD) == 0);
}

void zp_tests_grpc(void)
{
	RUN(a_kubelets_call_at_every_split);
	RUN(whole_frames_without_a_call_wait);
	RUN(every_spelling_of_a_call);
	RUN(padding_priority_and_continuations);
	RUN(others_are_users);
	RUN(a_block_that_is_too_large_is_a_users);
	RUN(random_and_mutated_bytes);
	RUN(the_answer_is_made_of_whole_frames);
}
