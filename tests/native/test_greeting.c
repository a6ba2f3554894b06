// SPDX-License-Identifier: Apache-2.0
/* Clients of HTTP/2 that are greeted in the app's stead, and what the app sees of them. */
#define _GNU_SOURCE
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "grpc.h"
#include "h2.h"

#define PATIENCE_MS 10000
#define ROOM	    4096
#define MANY	    500

/* Whether exactly these bytes come, of any value. */
static bool hear(int fd, const char *bytes, size_t size)
{
	struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
	char buffer[ROOM];
	size_t got = 0;
	ssize_t n = 1;

	while (got < size && n > 0) {
		if (poll(&poll_fd, 1, PATIENCE_MS) != 1)
			return false;
		n = recv(fd, buffer + got, size - got, 0);
		got += n > 0 ? (size_t)n : 0;
	}
	return got == size && memcmp(buffer, bytes, size) == 0;
}

static void say(int fd, const char *bytes, size_t size)
{
	zp_check(send(fd, bytes, size, MSG_NOSIGNAL) == (ssize_t)size, "send", __FILE__, __LINE__);
}
#define SAY(fd, literal) say(fd, literal, sizeof(literal) - 1)

static const char user[] = ACK WINDOW "\0\0\4\1\4\0\0\0\1\x82\x84\x86\x41" ACK PING;
static const char user_seen[] = WINDOW "\0\0\4\1\4\0\0\0\1\x82\x84\x86\x41" ACK PING;

static struct zp_activator *holding(int *ret_group)
{
	struct zp_activator *activator = zp_fixture_open();
	struct zp_group_options options = zp_fixture_options();
	const struct zp_wake_port port = {APP_PORT, IPPROTO_TCP};

	if (zp_group_add(activator, &port, 1, &options, ret_group) < 0 ||
	    zp_group_hold(activator, *ret_group) < 0)
		zp_check(false, "hold", __FILE__, __LINE__);
	return activator;
}

static int greeted(void)
{
	int fd = zp_fixture_connect(zp_fake_activator_port(APP_PORT)), one = 1;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	SAY(fd, PREFACE SETTINGS);
	zp_check(hear(fd, zp_h2_settings, ZP_H2_HEAD), "the greeting", __FILE__, __LINE__);
	return fd;
}

static int app_of(struct zp_activator *activator, int group)
{
	int listen_fd = zp_fixture_listen(APP_PORT, 8), app_fd;

	zp_check(zp_group_awake(activator, group) == 0, "awake", __FILE__, __LINE__);
	app_fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC);
	close(listen_fd);
	return app_fd;
}

static void a_greeted_check_is_answered(void)
{
	struct zp_group_stats stats = {0};
	char answer[ZP_GRPC_ANSWER_MAX];
	int group, fd;
	struct zp_activator *activator = holding(&group);

	fd = greeted();
	SAY(fd, ACK "\0\0\x64\1\4\0\0\0\1" CALL "\0\0\5\0\1\0\0\0\1\0\0\0\0\0");
	CHECK(hear(fd, answer, zp_grpc_answer(1, true, answer)));
	CHECK(zp_fixture_hear(fd, ""));
	close(fd);
	CHECK(zp_group_stats(activator, group, &stats) == 0);
	CHECK(stats.probes == 1 && stats.connections == 0);
	zp_activator_free(activator);
}

static void who_does_not_wait_is_told_nothing_before_his_answer(void)
{
	char answer[ZP_GRPC_ANSWER_MAX];
	int group, fd;
	struct zp_activator *activator = holding(&group);

	fd = zp_fixture_connect(zp_fake_activator_port(APP_PORT));
	SAY(fd, PREFACE SETTINGS "\0\0\x64\1\4\0\0\0\1" CALL);
	CHECK(hear(fd, answer, zp_grpc_answer(1, false, answer)));
	close(fd);
	zp_activator_free(activator);
}

static void who_is_greeted_and_goes_wakes_nobody(void)
{
	struct zp_group_stats stats = {0};
	int group, fd;
	struct zp_activator *activator = holding(&group);

	fd = greeted();
	SAY(fd, ACK "\0\0\x08\7\0\0\0\0\0\0\0\0\0\0\0\0\0"); /* GOAWAY */
	shutdown(fd, SHUT_WR);
	CHECK(zp_fixture_hear(fd, ""));
	close(fd);
	CHECK(zp_group_stats(activator, group, &stats) == 0);
	CHECK(stats.probes == 1 && stats.connections == 0);
	zp_activator_free(activator);
}

/* His end, which is there when his first words are looked at, is not taken for his last one. */
static void who_asks_and_ends_at_once_is_not_lost(void)
{
	struct zp_group_stats stats = {0};
	int group, fd[MANY], one = 1, i;
	struct zp_activator *activator = holding(&group);

	for (i = 0; i < MANY; i++) {
		fd[i] = zp_fixture_connect(zp_fake_activator_port(APP_PORT));
		setsockopt(fd[i], IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		SAY(fd[i], PREFACE SETTINGS);
		SAY(fd[i], "\0\0\4\1\5\0\0\0\1\x82\x84\x86\x41");
		shutdown(fd[i], SHUT_WR);
	}
	while (stats.connections + stats.probes < MANY)
		CHECK(zp_group_stats(activator, group, &stats) == 0);
	CHECK(stats.connections == MANY && stats.probes == 0);
	for (i = 0; i < MANY; i++)
		close(fd[i]);
	zp_activator_free(activator);
}

/* Whether the app sees all but the first ACK: @before is said before it is there, @at splits the
 * rest.
 */
static bool one_is_taken_out(size_t before, size_t at)
{
	struct zp_event event;
	int group, fd, app_fd;
	struct zp_activator *activator = holding(&group);
	bool good;

	fd = greeted();
	say(fd, user, before); /* a user by now, or when he has said no more for a while */
	good = zp_fixture_wait(activator, ZP_EVENT_PENDING, &event);
	app_fd = app_of(activator, group);
	good = good && hear(app_fd, PREFACE SETTINGS, sizeof(PREFACE SETTINGS) - 1);
	say(fd, user + before, at - before);
	if (at > sizeof(ACK) - 1) /* it was read by itself */
		good = good && hear(app_fd, user_seen, at - (sizeof(ACK) - 1));
	say(fd, user + at, sizeof(user) - 1 - at);
	at = at > sizeof(ACK) - 1 ? at - (sizeof(ACK) - 1) : 0;
	good = good && hear(app_fd, user_seen + at, sizeof(user_seen) - 1 - at);
	shutdown(fd, SHUT_WR);
	good = good && zp_fixture_hear(app_fd, "");
	SAY(app_fd, ACK);
	good = good && hear(fd, ACK, sizeof(ACK) - 1);
	close(app_fd);
	good = good && zp_fixture_hear(fd, "");
	close(fd);
	zp_activator_free(activator);
	return good;
}

static void one_ack_is_taken_out(void)
{
	static const size_t boundaries[] = {sizeof(ACK) - 1, sizeof(ACK WINDOW) - 1,
					    sizeof(user) - 1};
	size_t at, i;

	for (at = 0; at < sizeof(user); at++)
		CHECK(one_is_taken_out(0, at));
	for (i = 0; i < sizeof(boundaries) / sizeof(boundaries[0]); i++)
		CHECK(one_is_taken_out(boundaries[i], boundaries[i]));
}

/* An end, or a reset, in the midst of a frame's head gets to the app as it is. */
static void a_client_that_goes_without_an_ack(void)
{
	struct linger reset = {.l_onoff = 1};
	struct zp_event event;
	int group, fd, app_fd, round;

	for (round = 0; round < 2; round++) {
		struct zp_activator *activator = holding(&group);

		fd = greeted();
		CHECK(zp_fixture_wait(activator, ZP_EVENT_PENDING, &event));
		app_fd = app_of(activator, group);
		CHECK(hear(app_fd, PREFACE SETTINGS, sizeof(PREFACE SETTINGS) - 1));
		if (round == 0) {
			SAY(fd, "\0\0\0\4");
			shutdown(fd, SHUT_WR);
			CHECK(hear(app_fd, "\0\0\0\4", 4));
			CHECK(zp_fixture_hear(app_fd, ""));
			close(fd);
		} else {
			setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
			close(fd);
			CHECK(zp_fixture_reset(app_fd));
		}
		close(app_fd);
		zp_activator_free(activator);
	}
}

void zp_tests_greeting(void)
{
	RUN(a_greeted_check_is_answered);
	RUN(who_does_not_wait_is_told_nothing_before_his_answer);
	RUN(who_is_greeted_and_goes_wakes_nobody);
	RUN(who_asks_and_ends_at_once_is_not_lost);
	RUN(one_ack_is_taken_out);
	RUN(a_client_that_goes_without_an_ack);
}
