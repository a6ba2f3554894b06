// SPDX-License-Identifier: Apache-2.0
/* Connections through their states, with real sockets. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

#define MANY 300

static const char probe[] = "GET / HTTP/1.1\r\nUser-Agent: kube-probe/1\r\n\r\n";

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

static int client(void)
{
	return zp_fixture_connect(zp_fake_activator_port(APP_PORT));
}

static struct zp_group_stats stats_of(struct zp_activator *activator, int group)
{
	struct zp_group_stats stats = {0};

	zp_group_stats(activator, group, &stats);
	return stats;
}

static void bytes_both_ways_and_both_ends(void)
{
	struct zp_event event;
	int group, fd, listen_fd, app_fd;
	struct zp_activator *activator = holding(&group);

	fd = client();
	zp_fixture_say(fd, "hello");
	CHECK(zp_fixture_wait(activator, ZP_EVENT_PENDING, &event));
	CHECK(stats_of(activator, group).held == 1);
	listen_fd = zp_fixture_listen(APP_PORT, 8);
	CHECK(zp_group_awake(activator, group) == 0);
	app_fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC);
	CHECK(zp_fixture_hear(app_fd, "hello"));
	CHECK(zp_fixture_wait(activator, ZP_EVENT_READY, &event));
	shutdown(fd, SHUT_WR);
	CHECK(zp_fixture_hear(app_fd, ""));
	zp_fixture_say(app_fd, "world"); /* the other half is still open */
	CHECK(zp_fixture_hear(fd, "world"));
	close(app_fd);
	CHECK(zp_fixture_hear(fd, ""));
	CHECK(stats_of(activator, group).spliced == 1);
	close(fd);
	close(listen_fd);
	zp_activator_free(activator);
}

static void a_silent_opener_is_a_user_after_a_while(void)
{
	struct zp_event event;
	int group, fd;
	struct zp_activator *activator = holding(&group);

	fd = client();
	CHECK(zp_fixture_wait(activator, ZP_EVENT_PENDING, &event));
	close(fd);
	zp_activator_free(activator);
}

static void probes_are_answered_and_not_held(void)
{
	int group, fd, i;
	struct zp_activator *activator = holding(&group);

	close(client());
	for (i = 0; i < 3; i++) {
		fd = client();
		zp_fixture_say(fd, probe);
		CHECK(zp_fixture_hear(fd, "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"));
		CHECK(zp_fixture_hear(fd, ""));
		close(fd);
	}
	CHECK(stats_of(activator, group).probes == 4);
	CHECK(stats_of(activator, group).held == 0);
	zp_activator_free(activator);
}

static void a_client_that_goes_is_let_go(void)
{
	struct linger reset = {.l_onoff = 1};
	struct zp_event event;
	int group, fd, other, listen_fd, app_fd;
	struct zp_activator *activator = holding(&group);

	fd = client();
	zp_fixture_say(fd, "gone");
	CHECK(zp_fixture_wait(activator, ZP_EVENT_PENDING, &event));
	setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
	close(fd);
	other = client();
	zp_fixture_say(other, "here");
	while (stats_of(activator, group).connections < 2)
		sched_yield();
	listen_fd = zp_fixture_listen(APP_PORT, 8);
	CHECK(zp_group_awake(activator, group) == 0);
	app_fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC);
	CHECK(zp_fixture_hear(app_fd, "here"));
	close(app_fd);
	close(other);
	close(listen_fd);
	zp_activator_free(activator);
}

static void resets_are_passed_on_in_both_directions(void)
{
	struct linger reset = {.l_onoff = 1};
	int group, side, fds[2], listen_fd;
	struct zp_activator *activator = holding(&group);

	listen_fd = zp_fixture_listen(APP_PORT, 8);
	for (side = 0; side < 2; side++) {
		fds[0] = client();
		zp_fixture_say(fds[0], "x");
		CHECK(zp_group_awake(activator, group) == 0);
		fds[1] = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC);
		CHECK(zp_fixture_hear(fds[1], "x"));
		setsockopt(fds[side], SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
		close(fds[side]);
		CHECK(zp_fixture_reset(fds[!side]));
		close(fds[!side]);
	}
	close(listen_fd);
	zp_activator_free(activator);
}

static void many_go_through_a_short_queue(void)
{
	struct pollfd *fds = calloc(MANY, sizeof(*fds));
	struct zp_event event;
	int group, listen_fd, app_fd, i;
	struct zp_activator *activator = holding(&group);

	for (i = 0; i < MANY; i++) {
		fds[i].fd = client();
		zp_fixture_say(fds[i].fd, "ping");
	}
	listen_fd = zp_fixture_listen(APP_PORT, 16);
	CHECK(zp_group_awake(activator, group) == 0);
	for (i = 0; i < MANY; i++) {
		app_fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC);
		CHECK(zp_fixture_hear(app_fd, "ping"));
		zp_fixture_say(app_fd, "pong");
		close(app_fd);
	}
	for (i = 0; i < MANY; i++) {
		CHECK(zp_fixture_hear(fds[i].fd, "pong"));
		close(fds[i].fd);
	}
	CHECK(zp_fixture_wait(activator, ZP_EVENT_READY, &event));
	CHECK(stats_of(activator, group).spliced == MANY);
	free(fds);
	close(listen_fd);
	zp_activator_free(activator);
}

static void what_a_slow_reader_does_not_take_is_kept(void)
{
	enum { SIZE = 8 << 20 };
	char *sent = malloc(SIZE), *got = malloc(SIZE);
	size_t out = 0, in = 0;
	struct pollfd poll_fds[2];
	int group, fd, listen_fd, app_fd, i;
	struct zp_activator *activator = holding(&group);
	ssize_t n;

	for (i = 0; i < SIZE; i++)
		sent[i] = (char)(i * 31 + i / 4099);
	fd = client();
	listen_fd = zp_fixture_listen(APP_PORT, 8);
	zp_fixture_say(fd, "x");
	CHECK(zp_group_awake(activator, group) == 0);
	app_fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	CHECK(zp_fixture_hear(app_fd, "x"));
	poll_fds[0] = (struct pollfd){.fd = app_fd, .events = POLLOUT};
	/* Nobody reads: everything fills up; then it runs empty while the rest follows. */
	while (poll(poll_fds, 1, 200) == 1 && out < SIZE) {
		n = send(app_fd, sent + out, SIZE - out, MSG_NOSIGNAL);
		CHECK(n > 0);
		out += (size_t)n;
	}
	poll_fds[1] = (struct pollfd){.fd = fd, .events = POLLIN};
	while (in < SIZE) {
		poll_fds[0].events = out < SIZE ? POLLOUT : 0;
		CHECK(poll(poll_fds, 2, 10000) > 0);
		if (poll_fds[0].revents & POLLOUT) {
			n = send(app_fd, sent + out, SIZE - out, MSG_NOSIGNAL);
			CHECK(n > 0);
			out += (size_t)n;
		}
		if (poll_fds[1].revents & POLLIN) {
			n = recv(fd, got + in, SIZE - in, 0);
			CHECK(n > 0);
			in += (size_t)n;
		}
	}
	CHECK(memcmp(sent, got, SIZE) == 0);
	free(sent);
	free(got);
	close(app_fd);
	close(fd);
	close(listen_fd);
	zp_activator_free(activator);
}

/* Descriptors up to the second free one, no more. */
static struct rlimit leave_two_descriptors(void)
{
	struct rlimit before, low;
	int first = dup(0), second = dup(0);

	close(first);
	close(second);
	getrlimit(RLIMIT_NOFILE, &before);
	low = (struct rlimit){.rlim_cur = (rlim_t)second + 1, .rlim_max = before.rlim_max};
	setrlimit(RLIMIT_NOFILE, &low);
	return before;
}

static void without_a_descriptor_for_a_pipe_bytes_wait(void)
{
	struct zp_event event;
	struct rlimit before;
	int group, fd, listen_fd, app_fd;
	struct zp_activator *activator = holding(&group);

	fd = client();
	zp_fixture_say(fd, "hello");
	CHECK(zp_fixture_wait(activator, ZP_EVENT_PENDING, &event));
	listen_fd = zp_fixture_listen(APP_PORT, 8);
	before = leave_two_descriptors();
	CHECK(zp_group_awake(activator, group) == 0);
	while (stats_of(activator, group).spliced == 0)
		sched_yield();
	app_fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC);
	setrlimit(RLIMIT_NOFILE, &before);
	CHECK(app_fd >= 0);
	CHECK(zp_fixture_hear(app_fd, "hello"));
	zp_fixture_say(app_fd, "world");
	CHECK(zp_fixture_hear(fd, "world"));
	close(fd);
	close(app_fd);
	close(listen_fd);
	zp_activator_free(activator);
}

/* A child between fork and exec has copies of all descriptors. */
static void what_a_child_keeps_open_is_no_event_of_ours(void)
{
	int group, fd, other, pipe_fds[2];
	struct zp_activator *activator = holding(&group);
	uint16_t port = zp_fake_activator_port(APP_PORT);
	struct zp_group_options options = zp_fixture_options();
	const struct zp_wake_port app_port = {APP_PORT, IPPROTO_TCP};
	struct zp_event event;
	pid_t pid;
	char byte;

	fd = client();
	zp_fixture_say(fd, "x");
	CHECK(zp_fixture_wait(activator, ZP_EVENT_PENDING, &event));
	CHECK(pipe2(pipe_fds, O_CLOEXEC) == 0);
	pid = fork();
	if (pid == 0) {
		close(pipe_fds[1]);
		_exit(read(pipe_fds[0], &byte, 1) == 0 ? 0 : 1);
	}
	CHECK(zp_group_remove(activator, group) == 0);
	while (zp_group_hold(activator, group) == -ENOENT &&
	       zp_group_add(activator, &app_port, 1, &options, &group) < 0)
		sched_yield();
	zp_fixture_say(fd, "y");	  /* to a connection that is gone */
	other = zp_fixture_connect(port); /* to a port that is gone */
	CHECK(zp_group_hold(activator, group) == 0);
	CHECK(stats_of(activator, group).connections == 0);
	close(pipe_fds[0]);
	close(pipe_fds[1]);
	CHECK(waitpid(pid, NULL, 0) == pid);
	close(other);
	close(fd);
	zp_activator_free(activator);
}

static void a_queue_of_events_that_nobody_takes(void)
{
	struct zp_event event;
	int group, i;
	struct zp_activator *activator = holding(&group);

	for (i = 0; i < 400; i++) {
		int fd = client();

		zp_fixture_say(fd, "x");
		while (stats_of(activator, group).connections <= (uint64_t)i)
			sched_yield();
		CHECK(zp_group_drop(activator, group) == 0);
		CHECK(zp_group_hold(activator, group) == 0);
		close(fd);
	}
	for (i = 0; zp_activator_events(activator, &event, 1) == 1; i++)
		CHECK(event.kind == ZP_EVENT_PENDING);
	CHECK(i == 256);
	zp_activator_free(activator);
}

void zp_tests_conn(void)
{
	RUN(bytes_both_ways_and_both_ends);
	RUN(a_silent_opener_is_a_user_after_a_while);
	RUN(probes_are_answered_and_not_held);
	RUN(a_client_that_goes_is_let_go);
	RUN(resets_are_passed_on_in_both_directions);
	RUN(many_go_through_a_short_queue);
	RUN(what_a_slow_reader_does_not_take_is_kept);
	RUN(without_a_descriptor_for_a_pipe_bytes_wait);
	RUN(what_a_child_keeps_open_is_no_event_of_ours);
	RUN(a_queue_of_events_that_nobody_takes);
}
