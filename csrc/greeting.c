// SPDX-License-Identifier: Apache-2.0
/*
 * A client of HTTP/2 on the node, before it is known who it is.
 *
 * A kubelet's gRPC client sends the preface and its SETTINGS, and no call before it has heard the
 * server's SETTINGS. So it is greeted with some, once it has said nothing else for ZP_GREET_NS: who
 * does not wait for them is told nothing. They are empty.
 *
 * Where it turns out to be a user, the app greets it once more, which may happen at any time. What
 * it has said lies in the socket, but among it is, or will be, an ACK that the app has not asked
 * for, which ends the connection with many servers. Clients answer in order, so it is their first
 * one: until that has been taken out, no more is spliced at a time than a frame.
 */
#define _GNU_SOURCE
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "grpc.h"
#include "internal.h"

static bool has_ended(const struct zp_conn *conn)
{
	struct tcp_info info;
	socklen_t size = sizeof(info);

	return getsockopt(conn->client_fd, IPPROTO_TCP, TCP_INFO, &info, &size) < 0 ||
	       info.tcpi_state != TCP_ESTABLISHED;
}

/* How much lies in the socket; not by recv(2), which would take a reset's error. */
static size_t waiting(const struct zp_conn *conn)
{
	int size = 0;

	return ioctl(conn->client_fd, FIONREAD, &size) < 0 ? 0 : (size_t)size;
}

/* Whether it has said all that it will, and that is these bytes. In this order: more may come. */
static bool has_said_all(const struct zp_conn *conn, size_t size)
{
	return has_ended(conn) && waiting(conn) <= size;
}

static void answer(struct zp_conn *conn, uint32_t stream)
{
	char frames[ZP_GRPC_ANSWER_MAX];

	zp_conn_answer(conn, frames, zp_grpc_answer(stream, conn->greeted, frames));
}

/*
 * zp_greeting_look() - at what has arrived, for which zp_h2_begins(); goes on as far as that allows
 * @limit: how much may be looked at
 */
void zp_greeting_look(struct zp_conn *conn, const char *bytes, size_t size, size_t limit)
{
	struct zp_grpc grpc = {0};
	enum zp_verdict verdict = zp_grpc_classify(bytes, size, &grpc);

	conn->waits = grpc.waits;
	if (verdict == ZP_PROBE_YES) {
		answer(conn, grpc.stream);
	} else if (verdict == ZP_PROBE_NO || size >= limit) {
		zp_conn_user(conn);
	} else if (size >= ZP_H2_PREFACE && has_said_all(conn, size)) { /* it has asked nothing */
		conn->port->group->stats.probes++;
		conn->state = ZP_DRAINING;
		zp_conn_deadline(conn, zp_now_ns() + ZP_DRAIN_NS);
		zp_conn_drain(conn);
	} else if (!conn->waits) {
		zp_conn_deadline(conn, conn->accepted_ns + ZP_REQUEST_NS);
	} else if (!conn->greeted) {
		zp_conn_deadline(conn, zp_now_ns() + ZP_GREET_NS);
	}
}

/* zp_greeting_timeout() - it has said no more. Return: whether it may now, being greeted. */
bool zp_greeting_timeout(struct zp_conn *conn)
{
	if (!conn->waits || conn->greeted ||
	    send(conn->client_fd, zp_h2_settings, ZP_H2_HEAD, MSG_NOSIGNAL | MSG_DONTWAIT) !=
		    ZP_H2_HEAD)
		return false;
	conn->greeted = true;
	conn->until_frame = ZP_H2_PREFACE;
	zp_conn_deadline(conn, zp_now_ns() + ZP_GRACE_NS);
	return true;
}

/*
 * zp_greeting_room() - how much of what it says may be passed on now, of @room at most
 *
 * Takes the ACK out when that is next. Return: 0 where it must say more first.
 */
size_t zp_greeting_room(struct zp_conn *conn, size_t room)
{
	uint8_t head[ZP_H2_HEAD] = {0};
	bool ended;

	if (!conn->greeted)
		return room;
	if (conn->until_frame == 0) {
		ended = has_ended(conn); /* asked first: then nothing comes any more */
		if (waiting(conn) < ZP_H2_HEAD) {
			conn->greeted = !ended;
			return ended ? room : 0;
		}
		recv(conn->client_fd, head, ZP_H2_HEAD, MSG_PEEK | MSG_DONTWAIT);
		if (zp_h2_is_ack(head)) {
			conn->greeted = false;
			recv(conn->client_fd, head, ZP_H2_HEAD, MSG_DONTWAIT);
			return room;
		}
		conn->until_frame = zp_h2_frame(head);
	}
	return room < conn->until_frame ? room : conn->until_frame;
}

/* zp_greeting_passed() - so much was passed on. */
void zp_greeting_passed(struct zp_conn *conn, size_t size)
{
	if (conn->greeted)
		conn->until_frame -= size;
}
