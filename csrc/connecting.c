// SPDX-License-Identifier: Apache-2.0
/*
 * From the fired restore to an app that has everybody who waited for it.
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
#include <limits.h>
#include <netinet/in.h>
#include <unistd.h>

#include "internal.h"

/*
 * zp_group_waiting() - how many users are not with the app yet
 *
 * A connect that is under way may still fail.
 */
size_t zp_group_waiting(struct zp_group *group)
{
	struct zp_conn *conn;
	size_t count = zp_ports_parked(group);

	ZP_FOR_EACH_CONN(conn, group)
	if (conn->state == ZP_HELD || conn->state == ZP_CONNECTING)
		count++;
	return count;
}

/* zp_group_connect() - the processes run, or are about to: bring to them whoever waits. */
void zp_group_connect(struct zp_group *group)
{
	zp_group_forget_plan(group);
	zp_group_close_kept(group);
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
		zp_port_hold(port, false);
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
	ZP_FOR_EACH_CONN(conn, group)
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
		zp_port_hold(port, false);
	return put_back(group, port, left, now_ns) > 0 || begun;
}

static void give_up(struct zp_group *group)
{
	struct zp_conn *conn;
	int64_t count;

	zp_ports_hold(group, false);
	count = (int64_t)zp_ports_return(group);
	ZP_FOR_EACH_CONN(conn, group)
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
		if (zp_group_waiting(group) == 0) {
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
		zp_group_connect(group);
	}
	go_on_connecting(group, now_ns);
}
