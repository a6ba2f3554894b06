// SPDX-License-Identifier: Apache-2.0
/*
 * The ports of a group: what becomes of those who open a connection to one while it sleeps, and
 * where the activator itself listens for it. One of UDP has no such place: it is always parked.
 */
#define _GNU_SOURCE
#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "internal.h"
#include "netns.h"

#define LISTEN_BACKLOG 1024 /* half of ZP_MAX_OPENING: who waits here is known by his handshake */

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

/* zp_port_hold() - hold what opens a connection to a port, or let it pass. */
void zp_port_hold(struct zp_port_entry *port, bool on)
{
	enum zp_mode mode = on ? mode_asleep(port) : ZP_MODE_PASS;

	__atomic_store_n(&port->shared->mode, (uint8_t)mode, __ATOMIC_RELEASE);
	port->up = !on;
	if (!on) /* what came until then is here, too */
		zp_redirector_read_parked(&port->group->activator->redirector);
}

void zp_ports_hold(struct zp_group *group, bool on)
{
	size_t i;

	for (i = 0; i < group->port_count; i++) {
		zp_port_hold(&group->ports[i], on);
		group->ports[i].listens_since_ns = 0;
	}
}

/* zp_ports_return() - put back all that is parked: without a listener it is refused. Return: how
 * many.
 */
size_t zp_ports_return(struct zp_group *group)
{
	size_t i, count = 0;

	for (i = 0; i < group->port_count; i++)
		count += zp_park_return(group->activator, &group->ports[i], SIZE_MAX);
	return count;
}

size_t zp_ports_parked(struct zp_group *group)
{
	size_t i, count = 0;

	for (i = 0; i < group->port_count; i++)
		count += zp_park_count(group->activator, &group->ports[i]);
	return count;
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

/* zp_port_init() - the next port of a group: track it, awake. Return: 0 or -errno. */
int zp_port_init(struct zp_group *group, const struct zp_wake_port *wake)
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
	port->shared->probes = group->options.probe_detection;
	port->shared->full = activator->full;
	group->port_count++;
	return 0;
}
