// SPDX-License-Identifier: Apache-2.0
/* Segments from the node to an awake app: which count. They have all passed, some have ended. */
#define _GNU_SOURCE
#include <netinet/in.h>
#include <string.h>

#include "check.h"
#include "h2.h"

#define FIRST	ZP_RECORD_ASKED
#define LATER	ZP_RECORD_ASKED_ON
#define CHECKED "\0\0\x64\1\4\0\0\0\1" CALL
#define MESSAGE "\0\0\5\0\1\0\0\0\1\0\0\0\0\0"
#define OTHER	"\0\0\2\1\4\0\0\0\1\x83\x84"

static struct zp_activator *awake(uint32_t buffer_size)
{
	struct zp_activator *activator = zp_fixture_open();
	struct zp_group_options options = zp_fixture_options();
	const struct zp_wake_port port = {APP_PORT, IPPROTO_TCP};
	int group;

	options.probe_buffer_size = buffer_size;
	zp_check(zp_group_add(activator, &port, 1, &options, &group) == 0, "add", __FILE__,
		 __LINE__);
	return activator;
}

static uint64_t activity(struct zp_activator *activator)
{
	uint64_t ns = 0;

	zp_group_last_activity(activator, 0, &ns); /* hears what is in the ring */
	return ns;
}

static bool counts(struct zp_activator *activator, uint16_t from, uint8_t kind, const char *bytes,
		   size_t size)
{
	uint64_t before = activity(activator);

	zp_fake_ask(APP_PORT, from, kind, bytes, size);
	return activity(activator) != before;
}
#define COUNTS(activator, from, kind, literal)                                                     \
	counts(activator, from, kind, literal, sizeof(literal) - 1)

static uint64_t probes(struct zp_activator *activator)
{
	struct zp_group_stats stats = {0};

	zp_group_stats(activator, 0, &stats);
	return stats.probes_awake;
}

static void a_check_and_what_comes_after_it(void)
{
	struct zp_activator *activator = awake(1024);

	CHECK(!COUNTS(activator, 1, FIRST, PREFACE SETTINGS));
	CHECK(!COUNTS(activator, 1, LATER, ACK));
	CHECK(!COUNTS(activator, 1, LATER, CHECKED));
	CHECK(!COUNTS(activator, 1, LATER, MESSAGE));
	CHECK(!COUNTS(activator, 1, LATER, OTHER));
	CHECK(probes(activator) == 1);
	CHECK(!COUNTS(activator, 1, FIRST, PREFACE SETTINGS)); /* the same ports: another client */
	CHECK(COUNTS(activator, 1, LATER, OTHER));
	CHECK(!COUNTS(activator, 2, FIRST, PREFACE SETTINGS CHECKED MESSAGE));
	CHECK(probes(activator) == 2);
	zp_activator_free(activator);
}

/* Of a user who has come and gone nothing is remembered; he has used the app all the same. */
static void a_user_who_has_gone_counts(void)
{
	struct zp_activator *activator = awake(1024);

	CHECK(!COUNTS(activator, 1, FIRST, PREFACE SETTINGS));
	CHECK(COUNTS(activator, 1, LATER, ACK OTHER));
	CHECK(COUNTS(activator, 2, FIRST, PREFACE SETTINGS OTHER));
	CHECK(COUNTS(activator, 3, FIRST, "\x16\3\1"));
	CHECK(probes(activator) == 0);
	zp_activator_free(activator);
}

static void what_is_cut_off_counts(void)
{
	struct zp_activator *activator = awake(1024);

	CHECK(!COUNTS(activator, 1, FIRST, PREFACE)); /* a kubelet's SETTINGS come by themselves */
	CHECK(!COUNTS(activator, 1, LATER, SETTINGS));
	CHECK(!COUNTS(activator, 1, LATER, ACK CHECKED MESSAGE));
	CHECK(COUNTS(activator, 4, FIRST, PREFACE "\0"));
	CHECK(COUNTS(activator, 2, FIRST, PREFACE SETTINGS "\0\0"));
	CHECK(!COUNTS(activator, 3, FIRST, PREFACE SETTINGS));
	CHECK(COUNTS(activator, 3, LATER, "\0\0\x64\1\4\0\0\0\1\x83"));
	zp_activator_free(activator);
}

/* A frame ends where no more may be looked at, or where the copy ends, but not so the segment. */
static void what_is_too_long_counts(void)
{
	static const char to_1024[] = PREFACE SETTINGS "\0\3\xd0\x7a\0\0\0\0\0";
	static const char to_2008[] = PREFACE SETTINGS "\0\7\xa8\x7a\0\0\0\0\0";
	static char bytes[2100];
	struct zp_activator *activator = awake(1024);

	memcpy(bytes, to_1024, sizeof(to_1024) - 1);
	CHECK(!counts(activator, 1, FIRST, bytes, 1024));
	CHECK(counts(activator, 2, FIRST, bytes, 1025));
	zp_activator_free(activator);
	activator = awake(65536);
	memcpy(bytes, to_2008, sizeof(to_2008) - 1);
	CHECK(!counts(activator, 1, FIRST, bytes, 2008));
	CHECK(counts(activator, 2, FIRST, bytes, 2100));
	zp_activator_free(activator);
}

void zp_tests_asked(void)
{
	RUN(a_check_and_what_comes_after_it);
	RUN(a_user_who_has_gone_counts);
	RUN(what_is_cut_off_counts);
	RUN(what_is_too_long_counts);
}
