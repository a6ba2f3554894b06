// SPDX-License-Identifier: Apache-2.0
/*
 * Moves the bytes of a connection both ways without copying them: socket → pipe → socket.
 *
 * Each direction ends by itself: end of file is passed on by shutdown(2) once everything before it
 * has been written, and the other direction goes on. A reset is passed on as a reset. What the
 * receiver does not take waits in the pipe, and beyond that in the sender's socket: back-pressure.
 * Descriptors are edge-triggered, so a turn goes on until the kernel says EAGAIN; after
 * TURN_LIMIT pieces it lets others have theirs and comes again. Without a descriptor for a pipe it
 * comes again a little later; the bytes stay in the socket.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include "internal.h"

#define PIECE	   61440 /* with its headers one packet of 64 KiB, not one and a crumb */
#define TURN_LIMIT 32

enum moved { MOVED_NOTHING, MOVED_BYTES, MOVED_RESET, MOVED_LATER };

static enum moved take(struct zp_conn *conn, struct zp_half *half, int from)
{
	struct zp_activator *activator = conn->port->group->activator;
	size_t room = PIECE - half->held;
	ssize_t n;

	if (half->ended || half->held >= PIECE)
		return MOVED_NOTHING;
	if (half == &conn->up)
		room = zp_greeting_room(conn, room);
	if (room == 0)
		return MOVED_NOTHING;
	if (half->pipe.read_fd < 0 && zp_pipe_pool_get(&activator->pipes, &half->pipe) < 0)
		return MOVED_LATER;
	n = splice(from, NULL, half->pipe.write_fd, NULL, room, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? MOVED_NOTHING : MOVED_RESET;
	if (n == 0)
		half->ended = true;
	else
		half->held += (unsigned int)n;
	if (half == &conn->up)
		zp_greeting_passed(conn, (size_t)n);
	return MOVED_BYTES;
}

static enum moved give(struct zp_half *half, int to)
{
	ssize_t n;

	if (half->held == 0) {
		if (!half->ended || half->shut)
			return MOVED_NOTHING;
		half->shut = true;
		shutdown(to, SHUT_WR);
		return MOVED_BYTES;
	}
	n = splice(half->pipe.read_fd, NULL, to, NULL, half->held,
		   SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? MOVED_NOTHING : MOVED_RESET;
	half->held -= (unsigned int)n;
	return MOVED_BYTES;
}

static enum moved move_half(struct zp_conn *conn, struct zp_half *half, int from, int to)
{
	struct zp_activator *activator = conn->port->group->activator;
	enum moved taken, given;

	taken = take(conn, half, from);
	if (taken == MOVED_RESET)
		return MOVED_RESET;
	given = give(half, to);
	if (half->held == 0)
		zp_pipe_pool_put(&activator->pipes, &half->pipe, 0);
	return given == MOVED_NOTHING ? taken : given;
}

static void first_byte(struct zp_group *group)
{
	if (!group->first_byte_due)
		return;
	group->first_byte_due = false;
	zp_tell(group, ZP_EVENT_FIRST_BYTE, 0, 0);
}

static void come_again(struct zp_conn *conn, uint64_t at_ns)
{
	struct zp_activator *activator = conn->port->group->activator;

	conn->again = true;
	if (at_ns < activator->again_ns)
		activator->again_ns = at_ns;
}

/* Has a socket that has sent its end of file, and was sent none, been reset since? */
static bool was_reset(int fd)
{
	struct tcp_info info;
	socklen_t size = sizeof(info);

	return getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) == 0 &&
	       info.tcpi_state == TCP_CLOSE;
}

/* Nothing is read from it any more, and where nothing is written either, no call would tell. */
static bool half_closed_and_gone(const struct zp_conn *conn)
{
	return (conn->up.ended && !conn->down.shut && was_reset(conn->client_fd)) ||
	       (conn->down.ended && !conn->up.shut && conn->down.held == 0 &&
		was_reset(conn->app_fd));
}

/* zp_splice_pump() - move what can be moved now, for one turn. */
void zp_splice_pump(struct zp_conn *conn)
{
	struct zp_group *group = conn->port->group;
	enum moved up = MOVED_BYTES, down = MOVED_BYTES;
	int turn;

	conn->again = false;
	if (half_closed_and_gone(conn)) {
		zp_conn_close(conn, true);
		return;
	}
	for (turn = 0; turn < TURN_LIMIT; turn++) {
		/* One that could not move is told when it can: bulk goes one way mostly. */
		if (up == MOVED_BYTES)
			up = move_half(conn, &conn->up, conn->client_fd, conn->app_fd);
		if (down == MOVED_BYTES)
			down = move_half(conn, &conn->down, conn->app_fd, conn->client_fd);
		if (down == MOVED_BYTES)
			first_byte(group);
		if (up == MOVED_RESET || down == MOVED_RESET) {
			zp_conn_close(conn, true);
			return;
		}
		if (up != MOVED_BYTES && down != MOVED_BYTES)
			break;
		if (group->options.proxy_timeout_ns)
			zp_conn_deadline(conn, zp_now_ns() + group->options.proxy_timeout_ns);
	}
	if (conn->up.shut && conn->down.shut) {
		zp_conn_close(conn, false);
	} else if (turn == TURN_LIMIT) {
		come_again(conn, 0);
	} else if (up == MOVED_LATER || down == MOVED_LATER) {
		come_again(conn, zp_now_ns() + ZP_RETRY_MAX);
	}
}

/* zp_splice_start() - the app has accepted. */
void zp_splice_start(struct zp_conn *conn)
{
	struct zp_group *group = conn->port->group;

	conn->state = ZP_SPLICING;
	conn->deadline_ns = ZP_NEVER;
	if (group->options.proxy_timeout_ns)
		zp_conn_deadline(conn, zp_now_ns() + group->options.proxy_timeout_ns);
	group->stats.spliced++;
	zp_splice_pump(conn);
}
