// SPDX-License-Identifier: Apache-2.0
/*
 * Work inside a pod's network namespace.
 *
 * A socket belongs to the namespace that its maker was in, for ever. So a thread enters for the
 * moment in which it makes one and goes home at once: a thread that stayed would hand the pod's
 * namespace on to what it spawns.
 */
#define _GNU_SOURCE
#include "netns.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

/*
 * zp_netns_enter() - move the calling thread
 * @ns: keeps the way home
 * @netns_fd: the namespace
 *
 * Return: 0, or -errno with the thread where it was.
 */
int zp_netns_enter(struct zp_netns *ns, int netns_fd)
{
	int r;

	ns->home_fd = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
	if (ns->home_fd < 0)
		return -errno;
	if (setns(netns_fd, CLONE_NEWNET) < 0) {
		r = -errno;
		close(ns->home_fd);
		ns->home_fd = -EBADF;
		return r;
	}
	return 0;
}

/* zp_netns_leave() - go home. There is no way to go on in the wrong namespace: it aborts. */
void zp_netns_leave(struct zp_netns *ns)
{
	if (ns->home_fd < 0)
		return;
	if (setns(ns->home_fd, CLONE_NEWNET) < 0)
		abort();
	close(ns->home_fd);
	ns->home_fd = -EBADF;
}

/*
 * zp_netns_socket() - a socket of another namespace
 *
 * Return: 0 with the descriptor (CLOEXEC) in @ret_fd, or -errno.
 */
int zp_netns_socket(int netns_fd, int family, int type, int protocol, int *ret_fd)
{
	struct zp_netns ns = ZP_NETNS_NONE;
	int fd, r;

	r = zp_netns_enter(&ns, netns_fd);
	if (r < 0)
		return r;
	fd = socket(family, type | SOCK_CLOEXEC, protocol);
	r = fd < 0 ? -errno : 0;
	zp_netns_leave(&ns);
	if (r == 0)
		*ret_fd = fd;
	return r;
}
