// SPDX-License-Identifier: Apache-2.0
/* Every verdict, at every split of the request. */
#include <string.h>

#include "check.h"
#include "probe.h"

static const struct {
	const char *bytes;
	enum zp_verdict verdict;
} requests[] = {
	{"GET / HTTP/1.1\r\nUser-Agent: kube-probe/1.31\r\n\r\n", ZP_PROBE_YES},
	{"GET / HTTP/1.1\nuser-agent:kube-probe/1.31\n\n", ZP_PROBE_YES},
	{"GET /h?a=b HTTP/1.0\r\nHost: x\r\nUSER-AGENT: \t kube-probe/\r\n\r\n", ZP_PROBE_YES},
	{"HEAD / HTTP/1.1\r\nUser-Agent: kube-probe/1\r\nUser-Agent: curl\r\n\r\n", ZP_PROBE_YES},
	{"GET / HTTP/1.1\r\nUser-Agent: curl kube-probe/1\r\n\r\n", ZP_PROBE_NO},
	{"GET / HTTP/1.1\r\nUser-Agent: Kube-Probe/1\r\n\r\n", ZP_PROBE_NO},
	{"GET / HTTP/1.1\r\nX-User-Agent: kube-probe/1\r\n\r\n", ZP_PROBE_NO},
	{"GET /User-Agent:kube-probe/1 HTTP/1.1\r\nHost: x\r\n\r\n", ZP_PROBE_NO},
	{"GET / HTTP/1.1\r\n\r\nUser-Agent: kube-probe/1\r\n", ZP_PROBE_NO},
	{"POST / HTTP/1.1\r\nUser-Agent: curl\r\nUser-Agent: kube-probe/1\r\n\r\n", ZP_PROBE_NO},
	{"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", ZP_PROBE_NO},
	{"EHLO me\r\nUser-Agent: kube-probe/1\r\n", ZP_PROBE_NO},
	{"\x16\x03\x01\x02", ZP_PROBE_NO},
	{" GET / HTTP/1.1\r\n", ZP_PROBE_NO},
	{"ABCDEFGHIJKLMNOPQRSTUVWXYZ", ZP_PROBE_NO},
	{"\r\n", ZP_PROBE_NO},
};

static void every_split_gives_the_same_verdict(void)
{
	size_t i, size, length;
	enum zp_verdict verdict, before;

	for (i = 0; i < sizeof(requests) / sizeof(requests[0]); i++) {
		length = strlen(requests[i].bytes);
		before = ZP_PROBE_MORE;
		for (size = 1; size <= length; size++) {
			char exact[256]; /* so that a read past the end is seen */

			memset(exact, 0, sizeof(exact));
			memcpy(exact + sizeof(exact) - size, requests[i].bytes, size);
			verdict = zp_probe_classify(exact + sizeof(exact) - size, size, 1024);
			/* Once it is decided it stays so. */
			CHECK(before == ZP_PROBE_MORE || verdict == before);
			before = verdict;
		}
		CHECK(before == requests[i].verdict);
	}
}

static void a_full_buffer_without_a_verdict_is_a_user(void)
{
	const char *request = "GET / HTTP/1.1\r\nHost: a-long-name\r\n";
	size_t limit;

	for (limit = 1; limit <= strlen(request); limit++)
		CHECK(zp_probe_classify(request, limit, limit) == ZP_PROBE_NO);
	CHECK(zp_probe_classify(request, strlen(request), 1024) == ZP_PROBE_MORE);
}

static void the_answer_is_204(void)
{
	CHECK(strlen(zp_probe_answer) == zp_probe_answer_size);
	CHECK(strncmp(zp_probe_answer, "HTTP/1.1 204 No Content\r\n", 25) == 0);
	CHECK(strcmp(zp_probe_answer + zp_probe_answer_size - 4, "\r\n\r\n") == 0);
}

static void tls_is_known_by_its_first_bytes(void)
{
	CHECK(zp_probe_is_tls("\x16\x03\x01\x02", 4));
	CHECK(!zp_probe_is_tls("\x16", 1));
	CHECK(!zp_probe_is_tls("GET / HTTP/1.1\r\n", 16));
	CHECK(!zp_probe_is_tls("", 0));
}

void zp_tests_probe(void)
{
	RUN(every_split_gives_the_same_verdict);
	RUN(a_full_buffer_without_a_verdict_is_a_user);
	RUN(the_answer_is_204);
	RUN(tls_is_known_by_its_first_bytes);
}
