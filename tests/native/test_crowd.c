// SPDX-License-Identifier: Apache-2.0
/* More connections than are held at once. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "internal.h"

#define LATE	    64
#define ALL	    (ZP_MAX_CONNS + LATE)
#define PATIENCE_MS 30000

struct crowd {
	struct zp_activator *activator;
	int group, diag_fd, listen_fd;
	int clients[ALL], apps[ALL]; /* both ends of a connection, by its client's number */
};

/* Four descriptors a connection: both ends of the client's half and of the app's. */
static bool allow_descriptors(struct rlimit *ret_before)
{
	struct rlimit limit;

	getrlimit(RLIMIT_NOFILE, ret_before);
	limit = *ret_before;
	if (limit.rlim_cur < 4 * ALL + 256)
		limit.rlim_cur = 4 * ALL + 256;
	return limit.rlim_cur <= limit.rlim_max && setrlimit(RLIMIT_NOFILE, &limit) == 0;
}

static void come(struct crowd *crowd)
{
	uint16_t port = zp_fake_activator_port(APP_PORT);
	char text[16];
	int i;

	for (i = 0; i < ALL; i++) {
		snprintf(text, sizeof(text), "%06d", i);
		crowd->apps[i] = -EBADF;
		crowd->clients[i] = zp_fixture_connect(port);
		zp_fixture_say(crowd->clients[i], text);
	}
}

/* How many wait in the kernel's queue of the activator's own port. */
static unsigned int queued(struct crowd *crowd)
{
	uint16_t port = zp_fake_activator_port(APP_PORT);
	struct zp_listener listener;

	if (zp_diag_listener(crowd->diag_fd, IPPROTO_TCP, port, &listener) < 0)
		zp_check(false, "sock_diag", __FILE__, __LINE__);
	return listener.queued;
}

static struct zp_group_stats stats_of(struct crowd *crowd)
{
	struct zp_group_stats stats = {0};

	zp_group_stats(crowd->activator, crowd->group, &stats);
	return stats;
}

/* The app takes so many; each is another client's, who is heard. */
static bool serve(struct crowd *crowd, int count)
{
	struct pollfd poll_fd = {.fd = crowd->listen_fd, .events = POLLIN};
	char text[8] = "";
	int fd, number;

	while (count-- > 0) {
		if (poll(&poll_fd, 1, PATIENCE_MS) != 1)
			return false;
		fd = accept4(crowd->listen_fd, NULL, NULL, SOCK_CLOEXEC);
		if (recv(fd, text, 6, MSG_WAITALL) != 6)
			return false;
		number = atoi(text);
		if (crowd->apps[number] >= 0)
			return false;
		crowd->apps[number] = fd;
	}
	return true;
}

/* So many that the app has are answered and ended. */
static bool end(struct crowd *crowd, int count)
{
	bool good = true;
	int i;

	for (i = 0; i < ALL && count > 0; i++) {
		if (crowd->clients[i] < 0 || crowd->apps[i] < 0)
			continue;
		zp_fixture_say(crowd->apps[i], "bye");
		close(crowd->apps[i]);
		good = zp_fixture_hear(crowd->clients[i], "bye") &&
		       zp_fixture_hear(crowd->clients[i], "") && good;
		close(crowd->clients[i]);
		crowd->clients[i] = -EBADF;
		count--;
	}
	return good && count == 0;
}

static uint64_t next_accept(struct zp_activator *activator)
{
	uint64_t at_ns;

	pthread_mutex_lock(&activator->lock);
	at_ns = activator->accept_ns;
	pthread_mutex_unlock(&activator->lock);
	return at_ns;
}

/* Nothing is asked again and again. */
static bool comes_to_rest(struct zp_activator *activator)
{
	uint64_t until_ns = zp_now_ns() + PATIENCE_MS * ZP_MS;

	while (next_accept(activator) != ZP_NEVER && zp_now_ns() < until_ns)
		sched_yield();
	return next_accept(activator) == ZP_NEVER;
}

static void run(struct crowd *crowd)
{
	struct pollfd more = {.fd = crowd->listen_fd, .events = POLLIN};

	while (stats_of(crowd).held + queued(crowd) < ALL)
		sched_yield();
	CHECK(stats_of(crowd).held == ZP_MAX_CONNS);
	CHECK(zp_group_awake(crowd->activator, crowd->group) == 0);
	CHECK(serve(crowd, ZP_MAX_CONNS));
	while (stats_of(crowd).spliced < ZP_MAX_CONNS)
		sched_yield();
	CHECK(queued(crowd) == LATE);
	CHECK(poll(&more, 1, 0) == 0);
	CHECK(end(crowd, LATE));
	CHECK(serve(crowd, LATE));
	CHECK(queued(crowd) == 0);
	CHECK(end(crowd, ZP_MAX_CONNS));
	CHECK(stats_of(crowd).spliced == ALL);
	CHECK(stats_of(crowd).refused == 0);
	CHECK(comes_to_rest(crowd->activator));
}

/* They wait in the kernel's queue, with all that they have said, until earlier ones have ended. */
static void who_is_too_much_waits_and_is_served(void)
{
	struct crowd *crowd = calloc(1, sizeof(*crowd));
	const struct zp_wake_port ports[] = {{APP_PORT, IPPROTO_TCP}, {53, IPPROTO_UDP}};
	struct zp_group_options options = zp_fixture_options();
	int netns = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	struct rlimit before;

	CHECK(allow_descriptors(&before));
	crowd->activator = zp_fixture_open();
	CHECK(zp_diag_open(netns, &crowd->diag_fd) == 0);
	CHECK(zp_group_add(crowd->activator, ports, 2, &options, &crowd->group) == 0);
	CHECK(zp_group_hold(crowd->activator, crowd->group) == 0);
	crowd->listen_fd = zp_fixture_listen(APP_PORT, ALL);
	come(crowd);
	run(crowd);
	close(crowd->listen_fd);
	close(crowd->diag_fd);
	close(netns);
	zp_activator_free(crowd->activator);
	setrlimit(RLIMIT_NOFILE, &before);
	free(crowd);
}

void zp_tests_crowd(void)
{
	RUN(who_is_too_much_waits_and_is_served);
}
