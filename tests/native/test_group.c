// SPDX-License-Identifier: Apache-2.0
/* Every state of a group × every verb. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "internal.h"

enum verb { HOLD, ARM, WAKE, DISARM, AWAKE, DROP, VERBS };

/* What a verb gives in a state, and the state after it. */
static const struct {
	int result;
	enum zp_group_state after;
} table[ZP_GROUP_STATES][VERBS] = {
	[ZP_GROUP_AWAKE] = {[HOLD] = {0, ZP_GROUP_HOLDING},
			    [ARM] = {-EINVAL, ZP_GROUP_AWAKE},
			    [WAKE] = {0, ZP_GROUP_AWAKE},
			    [DISARM] = {0, ZP_GROUP_AWAKE},
			    [AWAKE] = {0, ZP_GROUP_AWAKE},
			    [DROP] = {0, ZP_GROUP_DROPPED}},
	[ZP_GROUP_HOLDING] = {[HOLD] = {0, ZP_GROUP_HOLDING},
			      [ARM] = {0, ZP_GROUP_ARMED},
			      [WAKE] = {0, ZP_GROUP_HOLDING},
			      [DISARM] = {0, ZP_GROUP_HOLDING},
			      [AWAKE] = {0, ZP_GROUP_CONNECTING},
			      [DROP] = {0, ZP_GROUP_DROPPED}},
	[ZP_GROUP_ARMED] = {[HOLD] = {-EINVAL, ZP_GROUP_ARMED},
			    [ARM] = {-EINVAL, ZP_GROUP_ARMED},
			    [WAKE] = {1, ZP_GROUP_FIRED},
			    [DISARM] = {1, ZP_GROUP_HOLDING},
			    [AWAKE] = {0, ZP_GROUP_CONNECTING},
			    [DROP] = {0, ZP_GROUP_DROPPED}},
	[ZP_GROUP_FIRED] = {[HOLD] = {0, ZP_GROUP_HOLDING},
			    [ARM] = {0, ZP_GROUP_ARMED},
			    [WAKE] = {0, ZP_GROUP_FIRED},
			    [DISARM] = {0, ZP_GROUP_FIRED},
			    [AWAKE] = {0, ZP_GROUP_CONNECTING},
			    [DROP] = {0, ZP_GROUP_DROPPED}},
	[ZP_GROUP_CONNECTING] = {[HOLD] = {0, ZP_GROUP_HOLDING},
				 [ARM] = {-EINVAL, ZP_GROUP_CONNECTING},
				 [WAKE] = {0, ZP_GROUP_CONNECTING},
				 [DISARM] = {0, ZP_GROUP_CONNECTING},
				 [AWAKE] = {0, ZP_GROUP_CONNECTING},
				 [DROP] = {0, ZP_GROUP_DROPPED}},
	[ZP_GROUP_DROPPED] = {[HOLD] = {0, ZP_GROUP_HOLDING},
			      [ARM] = {-EINVAL, ZP_GROUP_DROPPED},
			      [WAKE] = {0, ZP_GROUP_DROPPED},
			      [DISARM] = {0, ZP_GROUP_DROPPED},
			      [AWAKE] = {-EINVAL, ZP_GROUP_DROPPED},
			      [DROP] = {0, ZP_GROUP_DROPPED}},
};

/* The verbs that lead from AWAKE to a state. */
static const int way[ZP_GROUP_STATES][4] = {
	[ZP_GROUP_AWAKE] = {VERBS},
	[ZP_GROUP_HOLDING] = {HOLD, VERBS},
	[ZP_GROUP_ARMED] = {HOLD, ARM, VERBS},
	[ZP_GROUP_FIRED] = {HOLD, ARM, WAKE, VERBS},
	[ZP_GROUP_CONNECTING] = {HOLD, AWAKE, VERBS},
	[ZP_GROUP_DROPPED] = {DROP, VERBS},
};

static int apply(struct zp_activator *activator, int group, int verb, struct zp_plan *plan)
{
	switch (verb) {
	case HOLD:
		return zp_group_hold(activator, group);
	case ARM:
		return zp_group_arm(activator, group, plan);
	case WAKE:
		return zp_group_wake(activator, group);
	case DISARM:
		return zp_group_disarm(activator, group);
	case AWAKE:
		return zp_group_awake(activator, group);
	default:
		return zp_group_drop(activator, group);
	}
}

static enum zp_group_state state_of(struct zp_activator *activator, int group)
{
	enum zp_group_state state;

	pthread_mutex_lock(&activator->lock);
	state = activator->groups[group]->state;
	pthread_mutex_unlock(&activator->lock);
	return state;
}

static void every_state_and_every_verb(void)
{
	struct zp_group_options options = zp_fixture_options();
	const struct zp_wake_port port = {APP_PORT, IPPROTO_TCP};
	struct zp_plan *plan = zp_fixture_plan("exit 0", NULL);
	struct zp_activator *activator;
	int state, verb, step, group;

	for (state = 0; state < ZP_GROUP_STATES; state++)
		for (verb = 0; verb < VERBS; verb++) {
			activator = zp_fixture_open();
			CHECK(zp_group_add(activator, &port, 1, &options, &group) == 0);
			for (step = 0; way[state][step] != VERBS; step++)
				CHECK(apply(activator, group, way[state][step], plan) >= 0);
			CHECK(state_of(activator, group) == (enum zp_group_state)state);
			CHECK(apply(activator, group, verb, plan) == table[state][verb].result);
			CHECK(state_of(activator, group) == table[state][verb].after);
			CHECK(zp_fake_asleep(port.number) ==
			      (table[state][verb].after != ZP_GROUP_AWAKE &&
			       table[state][verb].after != ZP_GROUP_DROPPED));
			zp_activator_free(activator);
		}
	zp_plan_unref(plan);
	while (waitpid(-1, NULL, 0) > 0)
		;
}

static void a_group_that_is_not_there(void)
{
	struct zp_activator *activator = zp_fixture_open();
	struct zp_group_options options = zp_fixture_options();
	const struct zp_wake_port port = {APP_PORT, IPPROTO_TCP};
	struct zp_group_stats stats;
	int group, verb;

	CHECK(zp_group_add(activator, &port, 1, &options, &group) == 0);
	CHECK(zp_group_remove(activator, group) == 0);
	for (verb = 0; verb < VERBS; verb++)
		if (verb != ARM)
			CHECK(apply(activator, group, verb, NULL) == -ENOENT);
	CHECK(zp_group_hold(activator, -1) == -ENOENT);
	CHECK(zp_group_hold(activator, ZP_MAX_GROUPS) == -ENOENT);
	CHECK(zp_group_stats(activator, 7, &stats) == -ENOENT);
	/* Its port is free again. */
	CHECK(zp_group_add(activator, &port, 1, &options, &group) == 0);
	zp_activator_free(activator);
}

static void ports_are_bounded_and_nobodys_twice(void)
{
	struct zp_activator *activator = zp_fixture_open();
	struct zp_group_options options = zp_fixture_options();
	struct zp_wake_port ports[ZP_MAX_PORTS + 1];
	int group, i;

	for (i = 0; i < ZP_MAX_PORTS + 1; i++)
		ports[i] = (struct zp_wake_port){(uint16_t)(APP_PORT + i), IPPROTO_TCP};
	CHECK(zp_group_add(activator, ports, 0, &options, &group) == -E2BIG);
	CHECK(zp_group_add(activator, ports, ZP_MAX_PORTS + 1, &options, &group) == -E2BIG);
	CHECK(zp_group_add(activator, ports, 2, &options, &group) == 0);
	CHECK(zp_group_add(activator, ports + 1, 2, &options, &group) == -EEXIST);
	/* Nothing of the refused one is left. */
	CHECK(zp_fake_activator_port(ports[2].number) == 0);
	for (i = 2; i < ZP_MAX_GROUPS + 1; i++) {
		int r = zp_group_add(activator, ports + i, 1, &options, &group);

		CHECK(r == 0 || (r == -E2BIG && i >= ZP_MAX_GROUPS - 1));
	}
	zp_activator_free(activator);
}

/* What lies in the ring unread is heard of by whoever reads it next: a verb. */
static void who_is_in_the_ring_is_heard(void)
{
	struct zp_plan *plan = zp_fixture_plan("exit 0", NULL);
	struct zp_group_options options = zp_fixture_options();
	const struct zp_wake_port port = {APP_PORT, IPPROTO_TCP};
	struct zp_activator *activator = zp_fixture_open();
	struct zp_group_stats stats;
	int group;

	CHECK(zp_group_add(activator, &port, 1, &options, &group) == 0);
	CHECK(zp_group_hold(activator, group) == 0);
	zp_fake_park(APP_PORT);
	CHECK(zp_group_arm(activator, group, plan) == 1); /* it waits already */
	CHECK(zp_group_hold(activator, group) == 0);
	CHECK(zp_group_stats(activator, group, &stats) == 0);
	CHECK(stats.wakes == 1 && stats.held == 1);
	zp_group_drop(activator, group);
	CHECK(zp_group_stats(activator, group, &stats) == 0);
	CHECK(stats.held == 0);
	zp_plan_unref(plan);
	zp_activator_free(activator);
	while (waitpid(-1, NULL, 0) > 0)
		;
}

static void a_removed_group_wakes_nobody(void)
{
	char folder[] = "/tmp/zp-native-XXXXXX", path[64], script[128];
	struct zp_group_options options = zp_fixture_options();
	const struct zp_wake_port port = {APP_PORT, IPPROTO_TCP};
	struct zp_activator *activator = zp_fixture_open();
	struct zp_plan *plan;
	int group;

	CHECK(mkdtemp(folder) != NULL);
	snprintf(path, sizeof(path), "%s/fired", folder);
	snprintf(script, sizeof(script), ": > %s", path);
	plan = zp_fixture_plan(script, NULL);
	CHECK(zp_group_add(activator, &port, 1, &options, &group) == 0);
	CHECK(zp_group_hold(activator, group) == 0);
	CHECK(zp_group_arm(activator, group, plan) == 0);
	zp_fake_park(APP_PORT);
	CHECK(zp_group_remove(activator, group) == 0);
	zp_plan_unref(plan);
	zp_activator_free(activator);
	CHECK(waitpid(-1, NULL, 0) < 0); /* no child: nothing was fired */
	CHECK(access(path, F_OK) < 0);
	rmdir(folder);
}

static void the_ready_file_makes_it_connect(void)
{
	struct zp_activator *activator = zp_fixture_open();
	struct zp_group_options options = zp_fixture_options();
	char folder[] = "/tmp/zp-native-XXXXXX", path[64], script[128];
	const struct zp_wake_port port = {APP_PORT, IPPROTO_TCP};
	struct zp_event event;
	struct zp_plan *plan;
	int group, listen_fd;

	CHECK(mkdtemp(folder) != NULL);
	snprintf(path, sizeof(path), "%s/ready", folder);
	snprintf(script, sizeof(script), ": > %s", path);
	plan = zp_fixture_plan(script, path);
	listen_fd = zp_fixture_listen(port.number, 8);
	CHECK(zp_group_add(activator, &port, 1, &options, &group) == 0);
	CHECK(zp_group_hold(activator, group) == 0);
	CHECK(zp_group_arm(activator, group, plan) == 0);
	CHECK(zp_group_wake(activator, group) == 1);
	CHECK(zp_fixture_wait(activator, ZP_EVENT_FIRED, &event));
	CHECK(event.value == ZP_CAUSE_REQUEST && event.pid > 0);
	waitpid((pid_t)event.pid, NULL, 0);
	CHECK(zp_fixture_wait(activator, ZP_EVENT_READY, &event));
	CHECK(!zp_fake_asleep(port.number));
	/* What is left of one attempt says nothing of the next. */
	CHECK(zp_group_hold(activator, group) == 0);
	CHECK(zp_group_arm(activator, group, plan) == -EEXIST);
	CHECK(state_of(activator, group) == ZP_GROUP_HOLDING);
	zp_plan_unref(plan);
	zp_activator_free(activator);
	close(listen_fd);
	unlink(path);
	rmdir(folder);
}

static void what_cannot_be_set_up_leaves_nothing(void)
{
	struct zp_activator *activator = NULL;
	const char *step = NULL;
	int fd = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);

	CHECK(zp_activator_new(fd, "missing", &(struct zp_activator_options){0}, &activator,
			       &step) == -ENOENT);
	CHECK(strcmp(step, "open the BPF object") == 0 && activator == NULL);
	CHECK(zp_activator_new(9999, "fake", &(struct zp_activator_options){0}, &activator,
			       &step) == -EBADF);
	close(fd);
}

static void the_last_activity_is_the_latest_port(void)
{
	struct zp_activator *activator = zp_fixture_open();
	struct zp_group_options options = zp_fixture_options();
	const struct zp_wake_port ports[] = {
		{APP_PORT, IPPROTO_TCP}, {APP_PORT + 5, IPPROTO_TCP}, {APP_PORT + 2, IPPROTO_TCP}};
	uint64_t ns = 0;
	int group;

	CHECK(zp_group_add(activator, ports, 3, &options, &group) == 0);
	CHECK(zp_group_last_activity(activator, group, &ns) == 0);
	CHECK(ns == APP_PORT + 5); /* the fake gives the port's number */
	zp_activator_free(activator);
}

static void a_view_has_all_ports_and_says_whose_they_were(void)
{
	struct zp_activator *activator = zp_fixture_open();
	struct zp_group_options options = zp_fixture_options();
	const struct zp_wake_port ports[] = {{APP_PORT, IPPROTO_TCP}, {APP_PORT + 5, IPPROTO_UDP}};
	struct zp_port_view views[ZP_MAX_PORTS];
	struct zp_port *shared;
	size_t count = 0;
	int group;

	CHECK(zp_group_add(activator, ports, 2, &options, &group) == 0);
	shared = activator->groups[group]->ports[1].shared;
	shared->remote[15] = 1; /* the fake's node */
	shared->remote_port_be = htons(4711);
	CHECK(zp_group_view(activator, group, views, &count) == 0 && count == 2);
	CHECK(views[0].number == APP_PORT && views[0].protocol == IPPROTO_TCP);
	CHECK(views[0].last_activity_ns == APP_PORT && !views[0].of_node);
	CHECK(views[1].number == APP_PORT + 5 && views[1].protocol == IPPROTO_UDP);
	CHECK(views[1].remote_port == 4711 && views[1].remote[15] == 1 && views[1].of_node);
	CHECK(views[1].mode == ZP_MODE_PASS && views[1].unread == ZP_UNREAD_NO);
	CHECK(zp_group_hold(activator, group) == 0);
	activator->groups[group]->unread = ZP_UNREAD_TLS;
	CHECK(zp_group_view(activator, group, views, &count) == 0);
	CHECK(views[1].mode == ZP_MODE_PARK_ALL && views[1].unread == ZP_UNREAD_NO);
	activator->groups[group]->unread_flow.remote[15] = 1;
	activator->groups[group]->unread_flow.remote_port_be = htons(4711);
	CHECK(zp_group_view(activator, group, views, &count) == 0);
	CHECK(views[1].unread == ZP_UNREAD_TLS && views[0].unread == ZP_UNREAD_NO);
	CHECK(zp_group_remove(activator, group) == 0);
	CHECK(zp_group_view(activator, group, views, &count) == -ENOENT);
	zp_activator_free(activator);
}

void zp_tests_group(void)
{
	RUN(every_state_and_every_verb);
	RUN(a_group_that_is_not_there);
	RUN(ports_are_bounded_and_nobodys_twice);
	RUN(who_is_in_the_ring_is_heard);
	RUN(a_removed_group_wakes_nobody);
	RUN(the_ready_file_makes_it_connect);
	RUN(what_cannot_be_set_up_leaves_nothing);
	RUN(the_last_activity_is_the_latest_port);
	RUN(a_view_has_all_ports_and_says_whose_they_were);
}
