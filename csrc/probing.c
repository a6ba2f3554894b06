// SPDX-License-Identifier: Apache-2.0
/*
 * Whether a connection to a sleeping app is a user's or a probe, which is answered.
 *
 * It is decided by peeking: nothing is taken from the socket before the app is there, so no byte
 * can be lost or reordered.
 */
#define _GNU_SOURCE
#include <sys/socket.h>

#include "grpc.h"
#include "internal.h"
#include "probe.h"

/* zp_conn_user() - PROBING → HELD. */
void zp_conn_user(struct zp_conn *conn)
{
	conn->state = ZP_HELD;
	conn->deadline_ns = ZP_NEVER;
	conn->port->group->stats.connections++;
	zp_group_user(conn->port->group, conn);
}

/* zp_conn_answer() - PROBING → DRAINING: a probe is answered. */
void zp_conn_answer(struct zp_conn *conn, const char *bytes, size_t size)
{
	struct zp_activator *activator = conn->port->group->activator;

	conn->port->group->stats.probes++;
	while (recv(conn->client_fd, activator->peek, ZP_PEEK_MAX, MSG_DONTWAIT) > 0)
		;
	send(conn->client_fd, bytes, size, MSG_NOSIGNAL | MSG_DONTWAIT);
	shutdown(conn->client_fd, SHUT_WR);
	conn->state = ZP_DRAINING;
	zp_conn_deadline(conn, zp_now_ns() + ZP_DRAIN_NS);
}

/* zp_conn_drain() - until it hangs up. */
void zp_conn_drain(struct zp_conn *conn)
{
	struct zp_activator *activator = conn->port->group->activator;
	ssize_t n;

	do
		n = recv(conn->client_fd, activator->peek, ZP_PEEK_MAX, MSG_DONTWAIT);
	while (n > 0);
	if (n == 0 || (errno != EAGAIN && errno != EINTR))
		zp_conn_close(conn, false);
}

static bool is_of_node(const struct zp_conn *conn)
{
	return zp_redirector_is_of_node(&conn->port->group->activator->redirector,
					conn->flow.remote);
}

/* zp_conn_probe() - who is it? Goes on as far as what has arrived allows. */
void zp_conn_probe(struct zp_conn *conn)
{
	struct zp_group *group = conn->port->group;
	struct zp_activator *activator = group->activator;
	size_t limit = group->options.probe_buffer_size;
	enum zp_verdict verdict;
	ssize_t n;

	if (!group->options.probe_detection) {
		zp_conn_user(conn);
		return;
	}
	if (limit > ZP_PEEK_MAX)
		limit = ZP_PEEK_MAX;
	n = recv(conn->client_fd, activator->peek, limit, MSG_PEEK | MSG_DONTWAIT);
	if (n == 0) {
		group->stats.probes++; /* opened and closed: a TCP probe */
		zp_conn_close(conn, false);
		return;
	}
	if (n < 0) {
		if (errno != EAGAIN && errno != EINTR) {
			group->stats.probes++;
			zp_conn_close(conn, false);
		}
		return;
	}
	if (zp_h2_begins(activator->peek, (size_t)n) && is_of_node(conn)) {
		zp_greeting_look(conn, activator->peek, (size_t)n, limit);
		return;
	}
	verdict = zp_probe_classify(activator->peek, (size_t)n, limit);
	if (verdict != ZP_PROBE_NO && !is_of_node(conn))
		verdict = ZP_PROBE_NO; /* whoever else says so */
	switch (verdict) {
	case ZP_PROBE_YES:
		zp_conn_answer(conn, zp_probe_answer, zp_probe_answer_size);
		break;
	case ZP_PROBE_NO:
		conn->tls = zp_probe_is_tls(activator->peek, (size_t)n) && is_of_node(conn);
		zp_conn_user(conn);
		break;
	case ZP_PROBE_MORE:
		zp_conn_deadline(conn, conn->accepted_ns + ZP_REQUEST_NS);
		break;
	}
}
