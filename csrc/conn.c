// SPDX-License-Identifier: Apache-2.0
/*
 * A connection that reached a sleeping app, from accept to close; its states stand in internal.h.
 *
 * Its descriptors are in the epoll set once, for both directions, edge-triggered.
 */
#define _GNU_SOURCE
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "internal.h"
#include "netns.h"

#define ACCEPT_BATCH 128
#define INTEREST     (EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET)

static void address_bytes(const struct sockaddr_storage *address, uint8_t bytes[16],
			  uint16_t *ret_port_be)
{
	const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)address;
	const struct sockaddr_in *v4 = (const struct sockaddr_in *)address;

	if (address->ss_family == AF_INET6) {
		memcpy(bytes, &v6->sin6_addr, 16);
		*ret_port_be = v6->sin6_port;
		return;
	}
	memset(bytes, 0, 10);
	bytes[10] = bytes[11] = 0xff;
	memcpy(bytes + 12, &v4->sin_addr, 4);
	*ret_port_be = v4->sin_port;
}

/* The key under which the BPF programs remember this connection. */
static int flow_of(struct zp_conn *conn)
{
	struct sockaddr_storage address;
	socklen_t size = sizeof(address);
	uint16_t ignored;

	if (getpeername(conn->client_fd, (struct sockaddr *)&address, &size) < 0)
		return -errno;
	address_bytes(&address, conn->flow.remote, &conn->flow.remote_port_be);
	size = sizeof(address);
	if (getsockname(conn->client_fd, (struct sockaddr *)&address, &size) < 0)
		return -errno;
	address_bytes(&address, conn->flow.local, &ignored);
	conn->flow.local_port_be = htons(conn->port->port);
	return 0;
}

/* A client that has vanished is noticed; its keepalives are no activity to the BPF programs. */
static void tune_client(int fd)
{
	int one = 1, idle_s = 60, interval_s = 15, count = 4;

	setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof(idle_s));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof(interval_s));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof(count));
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}

/* zp_conn_deadline() - when zp_conn_timeout() is due; ZP_NEVER for never. */
void zp_conn_deadline(struct zp_conn *conn, uint64_t deadline_ns)
{
	struct zp_activator *activator = conn->port->group->activator;

	conn->deadline_ns = deadline_ns;
	if (deadline_ns < activator->scan_ns)
		activator->scan_ns = deadline_ns;
}

/* zp_conn_reserve() - memory for the first connections, before they come. Return: 0 or -errno. */
int zp_conn_reserve(struct zp_activator *activator)
{
	struct zp_conn *conn;

	if (!activator->peek)
		activator->peek = malloc(ZP_PEEK_MAX);
	if (!activator->peek)
		return -ENOMEM;
	while (activator->spare_count < ZP_SPARE_MAX) {
		conn = malloc(sizeof(*conn));
		if (!conn)
			return -ENOMEM;
		TAILQ_INSERT_TAIL(&activator->spare, conn, link);
		activator->spare_count++;
	}
	return 0;
}

void zp_conn_free_spare(struct zp_activator *activator)
{
	struct zp_conn *conn;

	while ((conn = TAILQ_FIRST(&activator->spare))) {
		TAILQ_REMOVE(&activator->spare, conn, link);
		free(conn);
	}
	activator->spare_count = 0;
}

static struct zp_conn *conn_take(struct zp_activator *activator)
{
	struct zp_conn *conn = TAILQ_FIRST(&activator->spare);

	if (!conn)
		return calloc(1, sizeof(*conn));
	TAILQ_REMOVE(&activator->spare, conn, link);
	activator->spare_count--;
	memset(conn, 0, sizeof(*conn));
	return conn;
}

static void conn_give(struct zp_activator *activator, struct zp_conn *conn)
{
	if (activator->spare_count == ZP_SPARE_MAX) {
		free(conn);
		return;
	}
	TAILQ_INSERT_TAIL(&activator->spare, conn, link);
	activator->spare_count++;
}

static struct zp_conn *conn_new(struct zp_port_entry *port, int fd)
{
	struct zp_activator *activator = port->group->activator;
	struct zp_conn *conn = conn_take(activator);

	if (!conn)
		return NULL;
	conn->source.kind = ZP_SOURCE_CONN;
	conn->port = port;
	conn->client_fd = fd;
	conn->app_fd = -EBADF;
	conn->up.pipe = conn->down.pipe = ZP_PIPE_NONE;
	conn->accepted_ns = zp_now_ns();
	zp_conn_deadline(conn, conn->accepted_ns + ZP_GRACE_NS);
	/* The flow last: nothing that fails behind it leaves it kept. */
	if (flow_of(conn) < 0 || zp_watch(activator, fd, INTEREST, &conn->source) < 0 ||
	    zp_redirector_keep_flow(&activator->redirector, &conn->flow, port->activator_port,
				    &conn->route) < 0) {
		conn_give(activator, conn);
		return NULL;
	}
	TAILQ_INSERT_TAIL(&activator->conns, conn, link);
	activator->conn_count++;
	return conn;
}

/* All ports of the activator share one bound. */
static void set_full(struct zp_activator *activator, bool full)
{
	struct zp_group *group;
	size_t port;
	int i;

	activator->full = full;
	for (i = 0; i < ZP_MAX_GROUPS; i++) {
		group = activator->groups[i];
		for (port = 0; group && !group->removed && port < group->port_count; port++)
			__atomic_store_n(&group->ports[port].shared->full, full, __ATOMIC_RELAXED);
	}
}

/*
 * zp_conn_accept() - take what waits at a port
 *
 * What is too much stays in the kernel's queue until zp_conn_sweep() has made room. Whoever comes
 * meanwhile is dropped before he gets there, and comes again: of who waits in the queue nothing is
 * known but the flow of his handshake, and of these a limited number.
 */
void zp_conn_accept(struct zp_port_entry *port)
{
	struct zp_activator *activator = port->group->activator;
	struct zp_conn *conn;
	int fd, i;

	for (i = 0; i < ACCEPT_BATCH; i++) {
		if (activator->conn_count >= ZP_MAX_CONNS) {
			set_full(activator, true);
			return;
		}
		fd = accept4(port->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
		if (fd < 0) {
			if (errno == ECONNABORTED || errno == EINTR)
				continue;
			if (errno == EAGAIN)
				return;
			/* No descriptors: wait for some to be closed. */
			activator->accept_ns = zp_now_ns() + ZP_RETRY_MAX;
			return;
		}
		tune_client(fd);
		conn = conn_new(port, fd);
		if (!conn) {
			zp_unwatch_close(activator, fd);
			continue;
		}
		zp_conn_probe(conn);
	}
	activator->accept_ns = 0; /* more may wait: others have their turn first */
}

/*
 * The address that the client asked for, and no other: what the app has bound to loopback alone is
 * not for whoever comes from outside, asleep as little as awake.
 */
static int app_address(struct zp_conn *conn, struct sockaddr_storage *ret_address,
		       socklen_t *ret_size)
{
	struct sockaddr_storage address;
	socklen_t size = sizeof(address);
	struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&address;
	struct sockaddr_in *v4 = (struct sockaddr_in *)ret_address;
	bool mapped;

	memset(ret_address, 0, sizeof(*ret_address));
	if (getsockname(conn->client_fd, (struct sockaddr *)&address, &size) < 0)
		return -errno;
	mapped = address.ss_family == AF_INET6 && IN6_IS_ADDR_V4MAPPED(&v6->sin6_addr);
	if (address.ss_family == AF_INET || mapped) {
		v4->sin_family = AF_INET;
		if (mapped)
			memcpy(&v4->sin_addr, v6->sin6_addr.s6_addr + 12, 4);
		else
			v4->sin_addr = ((struct sockaddr_in *)&address)->sin_addr;
		v4->sin_port = htons(conn->port->port);
		*ret_size = sizeof(*v4);
		return 0;
	}
	v6->sin6_port = htons(conn->port->port);
	memcpy(ret_address, v6, sizeof(*v6));
	*ret_size = sizeof(*v6);
	return 0;
}

static void connect_failed(struct zp_conn *conn)
{
	zp_unwatch_close(conn->port->group->activator, conn->app_fd);
	conn->app_fd = -EBADF;
	conn->state = ZP_HELD;
	if (conn->port->group->state != ZP_GROUP_CONNECTING)
		zp_group_user(conn->port->group, conn); /* nobody connects it again unasked */
}

/* zp_conn_connect() - HELD → CONNECTING: to the address that the client asked for. */
void zp_conn_connect(struct zp_conn *conn)
{
	struct zp_activator *activator = conn->port->group->activator;
	struct sockaddr_storage address;
	uint32_t mark = ZP_MARK;
	socklen_t size = 0;
	int one = 1, r;

	r = app_address(conn, &address, &size);
	if (r < 0) {
		zp_conn_close(conn, true);
		return;
	}
	r = zp_netns_socket(activator->netns_fd, address.ss_family, SOCK_STREAM | SOCK_NONBLOCK, 0,
			    &conn->app_fd);
	if (r < 0)
		return; /* stays held, and is tried again */
	setsockopt(conn->app_fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	/* Without the mark it would be redirected to us. */
	r = setsockopt(conn->app_fd, SOL_SOCKET, SO_MARK, &mark, sizeof(mark));
	if (r == 0)
		r = connect(conn->app_fd, (struct sockaddr *)&address, size);
	if (r < 0 && errno != EINPROGRESS) {
		connect_failed(conn);
		return;
	}
	if (zp_watch(activator, conn->app_fd, INTEREST, &conn->source) < 0) {
		connect_failed(conn);
		return;
	}
	conn->state = ZP_CONNECTING;
	conn->port->connecting++;
}

static void connected(struct zp_conn *conn)
{
	int error = 0;
	socklen_t size = sizeof(error);
	struct tcp_info info;
	socklen_t info_size = sizeof(info);

	if (getsockopt(conn->app_fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0)
		error = errno;
	if (error == 0 && (getsockopt(conn->app_fd, IPPROTO_TCP, TCP_INFO, &info, &info_size) < 0 ||
			   info.tcpi_state == TCP_SYN_SENT))
		return;
	conn->port->connecting--;
	if (error) {
		connect_failed(conn);
		return;
	}
	zp_splice_start(conn);
}

/* zp_conn_event() - something happened on one of its descriptors. */
void zp_conn_event(struct zp_conn *conn)
{
	struct tcp_info info;
	socklen_t size = sizeof(info);

	switch (conn->state) {
	case ZP_PROBING:
		zp_conn_probe(conn);
		break;
	case ZP_DRAINING:
		zp_conn_drain(conn);
		break;
	case ZP_HELD:
		/* A client that has reset is gone; one that has said all it has to say waits. */
		if (getsockopt(conn->client_fd, IPPROTO_TCP, TCP_INFO, &info, &size) == 0 &&
		    info.tcpi_state == TCP_CLOSE)
			zp_conn_close(conn, false);
		break;
	case ZP_CONNECTING:
		connected(conn);
		break;
	case ZP_SPLICING:
		zp_splice_pump(conn);
		break;
	}
}

/* zp_conn_timeout() - its deadline has passed. */
void zp_conn_timeout(struct zp_conn *conn, uint64_t now_ns)
{
	if (conn->deadline_ns > now_ns)
		return;
	if (conn->state != ZP_PROBING)
		zp_conn_close(conn, conn->state == ZP_SPLICING);
	else if (!zp_greeting_timeout(conn))
		zp_conn_user(conn);
}

static void linger(struct zp_activator *activator, const struct zp_conn *conn)
{
	struct zp_linger *entry;

	if (!activator->linger)
		activator->linger = calloc(ZP_LINGER_MAX, sizeof(*activator->linger));
	if (!activator->linger) {
		zp_redirector_forget_flow(&activator->redirector, &conn->flow, &conn->route);
		return;
	}
	if (activator->linger_count == ZP_LINGER_MAX) {
		entry = &activator->linger[activator->linger_first];
		zp_redirector_forget_flow(&activator->redirector, &entry->flow, &entry->route);
		activator->linger_first = (activator->linger_first + 1) % ZP_LINGER_MAX;
		activator->linger_count--;
	}
	entry = &activator->linger[(activator->linger_first + activator->linger_count++) %
				   ZP_LINGER_MAX];
	entry->flow = conn->flow;
	entry->route = conn->route;
	entry->until_ns = zp_now_ns() + ZP_LINGER_NS;
}

/* zp_conn_expire_flows() - forget the flows of connections that closed long enough ago. */
void zp_conn_expire_flows(struct zp_activator *activator, uint64_t now_ns, bool all)
{
	struct zp_linger *entry;

	while (activator->linger_count > 0) {
		entry = &activator->linger[activator->linger_first];
		if (!all && entry->until_ns > now_ns)
			return;
		zp_redirector_forget_flow(&activator->redirector, &entry->flow, &entry->route);
		activator->linger_first = (activator->linger_first + 1) % ZP_LINGER_MAX;
		activator->linger_count--;
	}
	free(activator->linger);
	activator->linger = NULL;
	activator->linger_first = 0;
}

static void reset_on_close(int fd)
{
	struct linger option = {.l_onoff = 1, .l_linger = 0};

	setsockopt(fd, SOL_SOCKET, SO_LINGER, &option, sizeof(option));
}

/* zp_conn_close() - close both sides, with a reset where asked. It is freed by zp_conn_sweep(). */
void zp_conn_close(struct zp_conn *conn, bool reset)
{
	struct zp_activator *activator = conn->port->group->activator;

	if (conn->dead)
		return;
	if (conn->state == ZP_CONNECTING)
		conn->port->connecting--;
	if (reset) {
		reset_on_close(conn->client_fd);
		if (conn->app_fd >= 0)
			reset_on_close(conn->app_fd);
	}
	zp_unwatch_close(activator, conn->client_fd);
	if (conn->app_fd >= 0)
		zp_unwatch_close(activator, conn->app_fd);
	zp_pipe_pool_put(&activator->pipes, &conn->up.pipe, conn->up.held);
	zp_pipe_pool_put(&activator->pipes, &conn->down.pipe, conn->down.held);
	linger(activator, conn);
	conn->dead = true;
	activator->any_dead = true;
}

/* zp_conn_sweep() - free what was closed: no event of this round can name it any more. */
void zp_conn_sweep(struct zp_activator *activator)
{
	struct zp_conn *conn, *next;

	if (!activator->any_dead)
		return;
	activator->any_dead = false;
	for (conn = TAILQ_FIRST(&activator->conns); conn; conn = next) {
		next = TAILQ_NEXT(conn, link);
		if (!conn->dead)
			continue;
		TAILQ_REMOVE(&activator->conns, conn, link);
		activator->conn_count--;
		conn_give(activator, conn);
	}
	if (activator->full && activator->conn_count < ZP_MAX_CONNS) {
		set_full(activator, false);
		activator->accept_ns = 0;
	}
}
