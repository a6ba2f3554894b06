// SPDX-License-Identifier: Apache-2.0
/*
 * The ports of one container and what happens to their connections; the states stand in
 * internal.h. Every verb takes the activator's lock; which verb is allowed in which state is the
 * table `allowed`.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "internal.h"

enum verb { VERB_HOLD, VERB_ARM, VERB_FIRE, VERB_DISARM, VERB_AWAKE, VERB_DROP, VERBS };

#define BIT(state) (1u << (state))
#define ANY	   (BIT(ZP_GROUP_STATES) - 1)

static const unsigned int allowed[VERBS] = {
	[VERB_HOLD] = ANY & ~BIT(ZP_GROUP_ARMED),
	[VERB_ARM] = BIT(ZP_GROUP_HOLDING) | BIT(ZP_GROUP_FIRED),
	[VERB_FIRE] = BIT(ZP_GROUP_ARMED),
	[VERB_DISARM] = BIT(ZP_GROUP_ARMED),
	[VERB_AWAKE] = BIT(ZP_GROUP_AWAKE) | BIT(ZP_GROUP_HOLDING) | BIT(ZP_GROUP_ARMED) |
		       BIT(ZP_GROUP_FIRED) | BIT(ZP_GROUP_CONNECTING),
	[VERB_DROP] = ANY,
};

static bool may(const struct zp_group *group, enum verb verb)
{
	return allowed[verb] & BIT(group->state);
}

/* zp_group_lock() - Return: the group with the lock taken, or NULL without it. */
struct zp_group *zp_group_lock(struct zp_activator *activator, int number)
{
	struct zp_group *group = NULL;

	pthread_mutex_lock(&activator->lock);
	if (number >= 0 && number < ZP_MAX_GROUPS)
		group = activator->groups[number];
	if (!group)
		pthread_mutex_unlock(&activator->lock);
	return group;
}

static bool any_held(struct zp_group *group)
{
	struct zp_conn *conn;

	ZP_FOR_EACH_CONN(conn, group)
	if (conn->state == ZP_HELD)
		return true;
	return zp_ports_parked(group) > 0;
}

/* zp_group_forget_plan() - nothing fires any more. */
void zp_group_forget_plan(struct zp_group *group)
{
	zp_plan_unref(group->plan);
	group->plan = NULL;
}

static int fire(struct zp_group *group, enum zp_cause cause)
{
	pid_t pid;
	int r;

	group->state = ZP_GROUP_FIRED;
	group->first_byte_due = true;
	group->stats.wakes++;
	group->stats.tls_wakes += cause == ZP_CAUSE_TLS;
	r = zp_plan_fire(group->plan, &pid);
	group->retry_ns = r == 0 && group->plan->ready_path ? zp_now_ns() : ZP_NEVER;
	if (r < 0)
		zp_tell(group, ZP_EVENT_FIRE_FAILED, 0, -r);
	else
		zp_tell(group, ZP_EVENT_FIRED, pid, cause);
	return r;
}

/* zp_group_close_kept() - the app's own sockets take the place of these. */
void zp_group_close_kept(struct zp_group *group)
{
	while (group->kept_count > 0)
		close(group->kept_fds[--group->kept_count]);
}

/* For whom it is woken: whether there is anybody who cannot be a probe. */
static enum zp_cause cause_of(struct zp_group *group)
{
	struct zp_conn *conn;

	ZP_FOR_EACH_CONN(conn, group)
	if (conn->state == ZP_HELD && !conn->tls)
		return ZP_CAUSE_CONNECTION;
	return zp_ports_parked(group) > 0 ? ZP_CAUSE_CONNECTION : ZP_CAUSE_TLS;
}

/* Somebody wants the app. Return: false where it is no more. */
static bool wanted(struct zp_group *group)
{
	switch (group->state) {
	case ZP_GROUP_HOLDING:
		if (!group->pending_told)
			zp_tell(group, ZP_EVENT_PENDING, 0, 0);
		group->pending_told = true;
		return true;
	case ZP_GROUP_ARMED:
		fire(group, cause_of(group));
		return true;
	case ZP_GROUP_FIRED:
		return true;
	case ZP_GROUP_CONNECTING:
		group->retry_ns = zp_now_ns();
		return true;
	case ZP_GROUP_AWAKE: /* he was held just before openers passed */
		zp_group_connect(group);
		group->ready_told = true;
		return true;
	default:
		return false;
	}
}

/* zp_group_user() - a connection has turned out to be a user's. */
void zp_group_user(struct zp_group *group, struct zp_conn *conn)
{
	if (wanted(group))
		return;
	group->stats.refused++;
	zp_conn_close(conn, true);
}

/* zp_group_parked() - a packet that opens something was parked. */
void zp_group_parked(struct zp_group *group)
{
	if (!wanted(group))
		zp_ports_return(group);
}

/* Close what a group has in the kernel; its memory stays until no event can name it. */
static void group_deinit(struct zp_group *group)
{
	struct zp_port_entry *port;
	struct zp_wake_port wake;
	struct zp_conn *conn;
	size_t i;

	group->state =
		ZP_GROUP_DROPPED; /* nobody fires any more: not who is still in the ring either */
	ZP_FOR_EACH_CONN(conn, group)
	zp_conn_close(conn, true);
	zp_ports_hold(group, false);
	zp_ports_return(group);
	for (i = 0; i < group->port_count; i++) {
		port = &group->ports[i];
		wake = (struct zp_wake_port){port->port, port->protocol};
		zp_redirector_remove_port(&group->activator->redirector, &wake, port->shared);
		if (port->listen_fd >= 0)
			zp_unwatch_close(group->activator, port->listen_fd);
	}
	zp_group_forget_plan(group);
	zp_group_close_kept(group);
	group->removed = true;
	group->activator->any_removed = true;
}

/* zp_group_free() - the memory of a group that was removed. */
void zp_group_free(struct zp_group *group)
{
	if (!group->removed)
		group_deinit(group);
	zp_conn_sweep(group->activator);
	group->activator->groups[group->number] = NULL;
	free(group);
}

/*
 * zp_group_add() - track ports, awake
 *
 * Return: 0 with the group's number, -EEXIST for a port that is tracked, -E2BIG for too many
 * ports or groups, or another -errno; nothing is tracked then.
 */
int zp_group_add(struct zp_activator *activator, const struct zp_wake_port *ports, size_t count,
		 const struct zp_group_options *options, int *ret_group)
{
	struct zp_group *group;
	size_t i;
	int number = 0, r = 0;

	if (count == 0 || count > ZP_MAX_PORTS)
		return -E2BIG;
	group = calloc(1, sizeof(*group));
	if (!group)
		return -ENOMEM;
	pthread_mutex_lock(&activator->lock);
	while (number < ZP_MAX_GROUPS && activator->groups[number])
		number++;
	group->activator = activator;
	group->options = *options;
	group->number = number;
	group->verify_ns = ZP_NEVER;
	if (number == ZP_MAX_GROUPS) {
		r = -E2BIG;
		free(group);
	} else {
		activator->groups[number] = group;
		for (i = 0; i < count && r == 0; i++)
			r = zp_port_init(group, &ports[i]);
		if (r < 0) {
			group_deinit(group);
			zp_kick(activator);
		}
	}
	pthread_mutex_unlock(&activator->lock);
	if (r == 0)
		*ret_group = number;
	return r;
}

int zp_group_remove(struct zp_activator *activator, int number)
{
	struct zp_group *group = zp_group_lock(activator, number);

	if (!group)
		return -ENOENT;
	if (!group->removed)
		group_deinit(group);
	zp_kick(activator);
	pthread_mutex_unlock(&activator->lock);
	return 0;
}

/* Return: what @verb gave, -ENOENT without such a group, -EINVAL where its state forbids it. */
static int act(struct zp_activator *activator, int number, enum verb verb,
	       int (*action)(struct zp_group *group, void *argument), void *argument)
{
	struct zp_group *group = zp_group_lock(activator, number);
	int r = -EINVAL;

	if (!group)
		return -ENOENT;
	if (group->removed)
		r = -ENOENT;
	else if (may(group, verb))
		r = action(group, argument);
	zp_kick(activator);
	pthread_mutex_unlock(&activator->lock);
	return r;
}

static int hold(struct zp_group *group, void *argument)
{
	int r;

	(void)argument;
	r = zp_conn_reserve(group->activator);
	/* There may be others than when the pod began. Asleep they are as good as not there. */
	if (r == 0 && (group->state == ZP_GROUP_AWAKE || group->state == ZP_GROUP_DROPPED))
		r = zp_redirector_attach(&group->activator->redirector, group->activator->netns_fd);
	if (r < 0)
		return r;
	zp_group_forget_plan(group);
	group->state = ZP_GROUP_HOLDING;
	group->pending_told = false;
	group->first_byte_due = false; /* nobody was spliced after the wake-up before this */
	zp_ports_hold(group, true);
	return 0;
}

static int arm(struct zp_group *group, void *argument)
{
	struct zp_plan *plan = argument;

	if (plan->ready_path && access(plan->ready_path, F_OK) == 0)
		return -EEXIST; /* of an attempt before: it would tell nothing */
	zp_redirector_read_parked(&group->activator->redirector); /* what the thread has not seen */
	zp_group_forget_plan(group);
	group->plan = zp_plan_ref(plan);
	group->state = ZP_GROUP_ARMED;
	if (!any_held(group))
		return 0;
	fire(group, cause_of(group));
	return 1;
}

static int wake(struct zp_group *group, void *argument)
{
	(void)argument;
	fire(group, ZP_CAUSE_REQUEST);
	return 1;
}

static int disarm(struct zp_group *group, void *argument)
{
	(void)argument;
	zp_group_forget_plan(group);
	group->state = ZP_GROUP_HOLDING;
	return 1;
}

static int awake(struct zp_group *group, void *argument)
{
	(void)argument;
	if (group->state != ZP_GROUP_CONNECTING && group->state != ZP_GROUP_AWAKE)
		zp_group_connect(group);
	return 0;
}

static int drop(struct zp_group *group, void *argument)
{
	struct zp_conn *conn;

	(void)argument;
	zp_group_forget_plan(group);
	zp_group_close_kept(group);
	ZP_FOR_EACH_CONN(conn, group)
	if (conn->state != ZP_SPLICING)
		zp_conn_close(conn, true);
	group->state = ZP_GROUP_DROPPED;
	zp_ports_hold(group, false);
	zp_ports_return(group);
	return 0;
}

/* zp_group_hold() - redirect and hold new connections; nothing fires. Return: 0 or -errno. */
int zp_group_hold(struct zp_activator *activator, int group)
{
	return act(activator, group, VERB_HOLD, hold, NULL);
}

/* zp_group_arm() - the first user fires @plan. Return: 1 when one did at once, 0, or -errno. */
int zp_group_arm(struct zp_activator *activator, int group, struct zp_plan *plan)
{
	return act(activator, group, VERB_ARM, arm, plan);
}

/* zp_group_wake() - fire by request. Return: 1 when this call did, 0 when not armed, -errno. */
int zp_group_wake(struct zp_activator *activator, int group)
{
	int r = act(activator, group, VERB_FIRE, wake, NULL);

	return r == -EINVAL ? 0 : r;
}

/* zp_group_disarm() - take the plan back. Return: 1, 0 when it had fired or never was, -errno. */
int zp_group_disarm(struct zp_activator *activator, int group)
{
	int r = act(activator, group, VERB_DISARM, disarm, NULL);

	return r == -EINVAL ? 0 : r;
}

/* zp_group_awake() - the app is there or coming: connect what is held. Return: 0 or -errno. */
int zp_group_awake(struct zp_activator *activator, int group)
{
	return act(activator, group, VERB_AWAKE, awake, NULL);
}

/* zp_group_drop() - refuse what is held and stop redirecting. Return: 0 or -errno. */
int zp_group_drop(struct zp_activator *activator, int group)
{
	return act(activator, group, VERB_DROP, drop, NULL);
}

/*
 * zp_group_keep() - copies of sockets that stand for the app's while it sleeps, for those before
 *
 * They are closed in the moment in which its processes run again: a datagram that is put back, or
 * comes then, might find them and not the app's.
 *
 * Return: 0 or -errno; then there are none.
 */
int zp_group_keep(struct zp_activator *activator, int number, const int *fds, size_t count)
{
	struct zp_group *group = zp_group_lock(activator, number);
	size_t i;
	int fd, r = 0;

	if (!group)
		return -ENOENT;
	zp_group_close_kept(group);
	if (count > ZP_MAX_KEPT)
		r = -E2BIG;
	for (i = 0; i < count && r == 0; i++) {
		fd = fcntl(fds[i], F_DUPFD_CLOEXEC, 3);
		if (fd < 0)
			r = -errno;
		else
			group->kept_fds[group->kept_count++] = fd;
	}
	if (r < 0 || group->removed)
		zp_group_close_kept(group);
	pthread_mutex_unlock(&activator->lock);
	return r;
}

/*
 * zp_group_last_activity() - the latest of its ports, 0 for never; now, while somebody waits for
 * the app to listen, so that it does not sleep again before it was asked
 *
 * Return: 0 or -errno.
 */
int zp_group_last_activity(struct zp_activator *activator, int number, uint64_t *ret_ns)
{
	struct zp_group *group = zp_group_lock(activator, number);
	uint64_t latest_ns = 0, ns;
	size_t i;

	if (!group)
		return -ENOENT;
	zp_redirector_read_parked(&activator->redirector); /* it may be asked of somebody */
	zp_kick(activator);				   /* or have somebody to wait for */
	for (i = 0; i < group->port_count; i++) {
		ns = __atomic_load_n(&group->ports[i].shared->last_activity_ns, __ATOMIC_RELAXED);
		if (ns > latest_ns)
			latest_ns = ns;
	}
	if (group->state == ZP_GROUP_CONNECTING && zp_group_waiting(group) > 0)
		latest_ns = zp_now_ns();
	pthread_mutex_unlock(&activator->lock);
	*ret_ns = latest_ns;
	return 0;
}

/*
 * zp_group_last_undecided() - of those of whom it is not known whether they count: when one was
 * heard of last, 0 for never
 *
 * They are who has sent a SYN to the awake app, and connections from the node that live and do not
 * count: a user may be among them who has just not spoken yet, or a probe that waits for its
 * answer. It is asked for when the app may be idle; then is the time to forget those that have
 * vanished.
 *
 * Return: 0 or -errno.
 */
int zp_group_last_undecided(struct zp_activator *activator, int number, uint64_t *ret_ns)
{
	struct zp_group *group = zp_group_lock(activator, number);
	uint64_t latest_ns, ns;
	size_t i;

	if (!group)
		return -ENOENT;
	latest_ns = zp_redirector_sweep_quiet(&activator->redirector, zp_now_ns() - ZP_QUIET_NS);
	for (i = 0; i < group->port_count; i++) {
		ns = __atomic_load_n(&group->ports[i].shared->last_opening_ns, __ATOMIC_RELAXED);
		if (ns > latest_ns)
			latest_ns = ns;
	}
	*ret_ns = latest_ns;
	pthread_mutex_unlock(&activator->lock);
	return 0;
}
