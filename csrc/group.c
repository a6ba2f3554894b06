// SPDX-License-Identifier: Apache-2.0
/*
 * The ports of one container and what happens to their connections; the states stand in
 * internal.h. Every verb takes the activator's lock; which verb is allowed in which state is the
 * table `allowed`.
 *
 * While FIRED, the plan's ready file is looked for every quarter of a millisecond, one access(2) of
 * 1 µs for as long as a restore takes. To be told of it would cost each pod an inotify instance, of
 * which a user may have 128.
 *
 * While CONNECTING, each port is asked for at the kernel (sock_diag): when it listens, as many held
 * connections are connected, and parked SYNs put back, as its accept queue has room for, an eighth
 * left free for those that come straight, and openers pass. In a crowd that goes on arriving they
 * are held until all before them have had room, for a second at most: straight SYNs would find the
 * queue full, and a client sends its SYN again only after a second. The question is repeated while
 * something is missing, every 1 to 10 ms.
 *
 * A SYN that was put back is in the accept queue only when its handshake is completed. Until then
 * it counts as in flight: so many were put back, so many handshakes the kernel has completed since
 * (PassiveOpens). A handshake that takes long is not waited for.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "internal.h"
#include "netns.h"

#define LISTEN_BACKLOG 4096

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

/* Return: the group with the lock taken, or NULL without it. */
static struct zp_group *lock_group(struct zp_activator *activator, int number)
{
	struct zp_group *group = NULL;

	pthread_mutex_lock(&activator->lock);
	if (number >= 0 && number < ZP_MAX_GROUPS)
		group = activator->groups[number];
	if (!group)
		pthread_mutex_unlock(&activator->lock);
	return group;
}

/* For every connection of a group, newest last; @conn may be closed in the body. */
#define FOR_EACH_CONN(conn, owner)                                                                 \
	TAILQ_FOREACH(conn, &(owner)->activator->conns, link)                                      \
	if ((conn)->port->group == (owner) && !(conn)->dead)

static size_t count_parked(struct zp_group *group)
{
	size_t i, count = 0;

	for (i = 0; i < group->port_count; i++)
		count += zp_park_count(group->activator, &group->ports[i]);
	return count;
}

static bool any_held(struct zp_group *group)
{
	struct zp_conn *conn;

	FOR_EACH_CONN(conn, group)
	if (conn->state == ZP_HELD)
		return true;
	return count_parked(group) > 0;
}

/* Users that are not with the app yet; a connect that is under way may still fail. */
static size_t count_waiting(struct zp_group *group)
{
	struct zp_conn *conn;
	size_t count = count_parked(group);

	FOR_EACH_CONN(conn, group)
	if (conn->state == ZP_HELD || conn->state == ZP_CONNECTING)
		count++;
	return count;
}

static enum zp_mode mode_asleep(const struct zp_port_entry *port)
{
	const struct zp_group *group = port->group;

	if (port->protocol == IPPROTO_UDP)
		return ZP_MODE_PARK_ALL;
	if (group->options.activation == ZP_ACTIVATION_SPLICE ||
	    zp_now_ns() < group->accept_first_until_ns)
		return ZP_MODE_REDIRECT;
	return group->options.activation == ZP_ACTIVATION_PARK ? ZP_MODE_PARK_ALL : ZP_MODE_PARK;
}

static void hold_port(struct zp_port_entry *port, bool on)
{
	enum zp_mode mode = on ? mode_asleep(port) : ZP_MODE_PASS;

	__atomic_store_n(&port->shared->mode, (uint8_t)mode, __ATOMIC_RELEASE);
	port->up = !on;
	if (!on) /* what came until then is here, too */
		zp_redirector_read_parked(&port->group->activator->redirector);
}

static void hold_ports(struct zp_group *group, bool on)
{
	size_t i;

	for (i = 0; i < group->port_count; i++) {
		hold_port(&group->ports[i], on);
		group->ports[i].listens_since_ns = 0;
	}
}

/* All that is parked, whatever becomes of it: without a listener it is refused. */
static size_t return_all(struct zp_group *group)
{
	size_t i, count = 0;

	for (i = 0; i < group->port_count; i++)
		count += zp_park_return(group->activator, &group->ports[i], SIZE_MAX);
	return count;
}

static void forget_plan(struct zp_group *group)
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
	r = zp_plan_fire(group->plan, &pid);
	group->retry_ns = r == 0 && group->plan->ready_path ? zp_now_ns() : ZP_NEVER;
	if (r < 0)
		zp_tell(group, ZP_EVENT_FIRE_FAILED, 0, -r);
	else
		zp_tell(group, ZP_EVENT_FIRED, pid, cause);
	return r;
}

static void close_kept(struct zp_group *group)
{
	while (group->kept_count > 0)
		close(group->kept_fds[--group->kept_count]);
}

static void start_connecting(struct zp_group *group)
{
	forget_plan(group);
	close_kept(group);
	group->state = ZP_GROUP_CONNECTING;
	group->retry_ns = zp_now_ns();
	group->deadline_ns = group->retry_ns + group->options.connect_timeout_ns;
	group->retry_step_ns = ZP_RETRY_MIN;
	group->ready_told = false;
	group->pending_told = false;
	group->returned = 0;
}

static void ready(struct zp_group *group)
{
	if (!group->ready_told)
		zp_tell(group, ZP_EVENT_READY, 0, 0);
	group->ready_told = true;
}

/* SYNs that were put back and whose handshakes are under way. */
static long in_flight(struct zp_group *group, uint64_t now_ns)
{
	uint64_t opens, done;

	if (group->returned == 0)
		return 0;
	if (zp_park_passive_opens(group->activator, &opens) < 0)
		return 0;
	done = opens - group->opens_before;
	if (done > 0)
		group->progress_ns = now_ns;
	if (done >= group->returned || now_ns - group->progress_ns >= ZP_HANDSHAKE_NS)
		group->returned = 0;
	else
		group->returned -= done;
	group->opens_before = opens;
	return (long)group->returned;
}

/* Put back as many of a port as there is room for. Return: how many. */
static size_t put_back(struct zp_group *group, struct zp_port_entry *port, long left,
		       uint64_t now_ns)
{
	uint64_t opens = group->opens_before;
	size_t count;

	if (left <= 0 || zp_park_count(group->activator, port) == 0)
		return 0;
	if (port->protocol == IPPROTO_TCP && group->returned == 0)
		zp_park_passive_opens(group->activator, &opens);
	count = zp_park_return(group->activator, port, (size_t)left);
	group->stats.parked += count;
	if (port->protocol != IPPROTO_TCP)
		return count;
	if (group->verify_ns == ZP_NEVER)
		group->opens_at_wake = opens;
	group->verify_ns = now_ns + ZP_VERIFY_NS;
	group->opens_before = opens;
	group->returned += count;
	group->progress_ns = now_ns;
	return count;
}

/* Whether somebody has completed a handshake since the wake-up. */
static void verify(struct zp_group *group, uint64_t now_ns)
{
	uint64_t opens;

	group->verify_ns = ZP_NEVER;
	if (zp_park_passive_opens(group->activator, &opens) < 0)
		return;
	if (opens > group->opens_at_wake) {
		group->bare_wakes = 0;
		return;
	}
	group->stats.bare_wakes++;
	if (++group->bare_wakes >= ZP_BARE_WAKES)
		group->accept_first_until_ns = now_ns + ZP_ACCEPT_FIRST_NS;
}

static long room(struct zp_port_entry *port, const struct zp_listener *listener, long flying)
{
	long backlog = listener->backlog, busy = (long)listener->queued + port->connecting + flying;

	if (busy == 0)
		return backlog > 8 ? backlog - backlog / 8 : 1;
	return backlog - backlog / 8 - busy;
}

/* In their order: those that come meanwhile are parked behind them. Return: whether there were any.
 */
static bool connect_datagrams(struct zp_group *group, struct zp_port_entry *port, uint64_t now_ns)
{
	bool any = put_back(group, port, LONG_MAX, now_ns) > 0;

	zp_redirector_read_parked(&group->activator->redirector);
	if (!port->up && zp_park_count(group->activator, port) == 0)
		hold_port(port, false);
	return put_back(group, port, LONG_MAX, now_ns) > 0 || any;
}

/* Return: whether a connect was begun, or something put back. */
static bool connect_port(struct zp_group *group, struct zp_port_entry *port, uint64_t now_ns)
{
	struct zp_activator *activator = group->activator;
	struct zp_listener listener;
	struct zp_conn *conn;
	bool begun = false, crowded = false;
	long left;

	/* Without an answer (no memory, say) nothing is known: asked again, until the time is up.
	 */
	if (zp_diag_listener(activator->diag_fd, port->protocol, port->port, &listener) < 0 ||
	    listener.sockets == 0)
		return false;
	if (!port->listens_since_ns)
		port->listens_since_ns = now_ns;
	if (port->protocol == IPPROTO_UDP)
		return connect_datagrams(group, port, now_ns);
	left = room(port, &listener, in_flight(group, now_ns));
	FOR_EACH_CONN(conn, group)
	{
		if (conn->port != port || conn->state != ZP_HELD)
			continue;
		if (left-- <= 0) {
			crowded = true;
			break;
		}
		zp_conn_connect(conn);
		begun = begun || conn->state != ZP_HELD;
	}
	crowded = crowded || (long)zp_park_count(activator, port) > left;
	if (!port->up && (!crowded || now_ns - port->listens_since_ns >= ZP_CROWD_NS))
		hold_port(port, false);
	return put_back(group, port, left, now_ns) > 0 || begun;
}

static void give_up(struct zp_group *group)
{
	struct zp_conn *conn;
	int64_t count;

	hold_ports(group, false);
	count = (int64_t)return_all(group);
	FOR_EACH_CONN(conn, group)
	{
		if (conn->state != ZP_HELD && conn->state != ZP_CONNECTING)
			continue;
		zp_conn_close(conn, true);
		count++;
	}
	if (count)
		zp_tell(group, ZP_EVENT_CONNECT_TIMEOUT, 0, count);
	group->stats.refused += (uint64_t)count;
	group->state = ZP_GROUP_AWAKE;
	ready(group);
}

static void go_on_connecting(struct zp_group *group, uint64_t now_ns)
{
	bool all_up = true, begun = false;
	size_t i;

	for (i = 0; i < group->port_count; i++) {
		begun = connect_port(group, &group->ports[i], now_ns) || begun;
		all_up = all_up && group->ports[i].up;
	}
	if (all_up) {
		ready(group);
		if (count_waiting(group) == 0) {
			group->state = ZP_GROUP_AWAKE;
			return;
		}
	}
	if (now_ns >= group->deadline_ns) {
		give_up(group);
		return;
	}
	if (begun)
		group->retry_step_ns = ZP_RETRY_MIN;
	group->retry_ns = now_ns + group->retry_step_ns;
	if (group->retry_step_ns < ZP_RETRY_MAX)
		group->retry_step_ns *= 2;
	if (group->retry_step_ns > ZP_RETRY_MAX)
		group->retry_step_ns = ZP_RETRY_MAX;
}

/* zp_group_due() - when zp_group_tick() wants to be called next. */
uint64_t zp_group_due(const struct zp_group *group)
{
	bool waits = group->state == ZP_GROUP_FIRED || group->state == ZP_GROUP_CONNECTING;

	return waits && group->retry_ns < group->verify_ns ? group->retry_ns : group->verify_ns;
}

/* zp_group_tick() - see whether the processes run, whether the app listens; when it is time. */
void zp_group_tick(struct zp_group *group, uint64_t now_ns)
{
	if (now_ns >= group->verify_ns)
		verify(group, now_ns);
	if (group->state != ZP_GROUP_FIRED && group->state != ZP_GROUP_CONNECTING)
		return;
	if (now_ns < group->retry_ns)
		return;
	if (group->state == ZP_GROUP_FIRED) {
		if (access(group->plan->ready_path, F_OK) < 0) {
			group->retry_ns = now_ns + ZP_LOOK_NS;
			return;
		}
		start_connecting(group);
	}
	go_on_connecting(group, now_ns);
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
		fire(group, ZP_CAUSE_CONNECTION);
		return true;
	case ZP_GROUP_FIRED:
		return true;
	case ZP_GROUP_CONNECTING:
		group->retry_ns = zp_now_ns();
		return true;
	case ZP_GROUP_AWAKE: /* he was held just before openers passed */
		start_connecting(group);
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
		return_all(group);
}

static int listen_dual(struct zp_group *group, int family, int *ret_fd)
{
	struct sockaddr_storage address = {.ss_family = (sa_family_t)family};
	socklen_t size =
		family == AF_INET6 ? sizeof(struct sockaddr_in6) : sizeof(struct sockaddr_in);
	int fd, zero = 0, r;

	r = zp_netns_socket(group->activator->netns_fd, family, SOCK_STREAM | SOCK_NONBLOCK, 0,
			    &fd);
	if (r < 0)
		return r;
	if (family == AF_INET6)
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof(zero));
	if (bind(fd, (struct sockaddr *)&address, size) < 0 || listen(fd, LISTEN_BACKLOG) < 0) {
		r = -errno;
		close(fd);
		return r;
	}
	*ret_fd = fd;
	return 0;
}

static int port_listen(struct zp_port_entry *port)
{
	struct zp_group *group = port->group;
	struct sockaddr_in6 address;
	socklen_t size = sizeof(address);
	int r;

	r = listen_dual(group, AF_INET6, &port->listen_fd);
	if (r < 0) /* a node without IPv6 */
		r = listen_dual(group, AF_INET, &port->listen_fd);
	if (r < 0)
		return r;
	if (getsockname(port->listen_fd, (struct sockaddr *)&address, &size) < 0)
		return -errno;
	port->activator_port = ntohs(address.sin6_port); /* the same place in both families */
	return zp_watch(group->activator, port->listen_fd, EPOLLIN | EPOLLET, &port->source);
}

static int port_init(struct zp_group *group, const struct zp_wake_port *wake)
{
	struct zp_port_entry *port = &group->ports[group->port_count];
	struct zp_activator *activator = group->activator;
	int r = 0;

	*port = (struct zp_port_entry){.source = {ZP_SOURCE_PORT},
				       .group = group,
				       .port = wake->number,
				       .protocol = wake->protocol,
				       .listen_fd = -EBADF,
				       .up = true};
	if (wake->protocol == IPPROTO_TCP)
		r = port_listen(port);
	if (r == 0)
		r = zp_redirector_add_port(&activator->redirector, wake, port->activator_port,
					   &port->shared);
	if (r < 0) {
		if (port->listen_fd >= 0)
			zp_unwatch_close(activator, port->listen_fd);
		return r;
	}
	group->port_count++;
	return 0;
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
	FOR_EACH_CONN(conn, group)
	zp_conn_close(conn, true);
	hold_ports(group, false);
	return_all(group);
	for (i = 0; i < group->port_count; i++) {
		port = &group->ports[i];
		wake = (struct zp_wake_port){port->port, port->protocol};
		zp_redirector_remove_port(&group->activator->redirector, &wake, port->shared);
		if (port->listen_fd >= 0)
			zp_unwatch_close(group->activator, port->listen_fd);
	}
	forget_plan(group);
	close_kept(group);
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
			r = port_init(group, &ports[i]);
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
	struct zp_group *group = lock_group(activator, number);

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
	struct zp_group *group = lock_group(activator, number);
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
	forget_plan(group);
	group->state = ZP_GROUP_HOLDING;
	group->pending_told = false;
	hold_ports(group, true);
	return 0;
}

static int arm(struct zp_group *group, void *argument)
{
	struct zp_plan *plan = argument;

	if (plan->ready_path && access(plan->ready_path, F_OK) == 0)
		return -EEXIST; /* of an attempt before: it would tell nothing */
	zp_redirector_read_parked(&group->activator->redirector); /* what the thread has not seen */
	forget_plan(group);
	group->plan = zp_plan_ref(plan);
	group->state = ZP_GROUP_ARMED;
	if (!any_held(group))
		return 0;
	fire(group, ZP_CAUSE_CONNECTION);
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
	forget_plan(group);
	group->state = ZP_GROUP_HOLDING;
	return 1;
}

static int awake(struct zp_group *group, void *argument)
{
	(void)argument;
	if (group->state != ZP_GROUP_CONNECTING && group->state != ZP_GROUP_AWAKE)
		start_connecting(group);
	return 0;
}

static int drop(struct zp_group *group, void *argument)
{
	struct zp_conn *conn;

	(void)argument;
	forget_plan(group);
	close_kept(group);
	FOR_EACH_CONN(conn, group)
	if (conn->state != ZP_SPLICING)
		zp_conn_close(conn, true);
	group->state = ZP_GROUP_DROPPED;
	hold_ports(group, false);
	return_all(group);
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
	struct zp_group *group = lock_group(activator, number);
	size_t i;
	int fd, r = 0;

	if (!group)
		return -ENOENT;
	close_kept(group);
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
		close_kept(group);
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
	struct zp_group *group = lock_group(activator, number);
	uint64_t latest_ns = 0, ns;
	size_t i;

	if (!group)
		return -ENOENT;
	for (i = 0; i < group->port_count; i++) {
		ns = __atomic_load_n(&group->ports[i].shared->last_activity_ns, __ATOMIC_RELAXED);
		if (ns > latest_ns)
			latest_ns = ns;
	}
	if (group->state == ZP_GROUP_CONNECTING && count_waiting(group) > 0)
		latest_ns = zp_now_ns();
	pthread_mutex_unlock(&activator->lock);
	*ret_ns = latest_ns;
	return 0;
}

int zp_group_stats(struct zp_activator *activator, int number, struct zp_group_stats *ret_stats)
{
	struct zp_group *group = lock_group(activator, number);

	if (!group)
		return -ENOENT;
	*ret_stats = group->stats;
	ret_stats->held = count_waiting(group);
	pthread_mutex_unlock(&activator->lock);
	return 0;
}
