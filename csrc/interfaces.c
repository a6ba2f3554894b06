// SPDX-License-Identifier: Apache-2.0
/*
 * On which interfaces of a pod the BPF programs are.
 *
 * On all of them, lo included. Links (TCX) go with the process. A kernel without TCX refuses the
 * first link with EINVAL; then filters on clsact are used, which outlive us: they are removed at
 * the end, and after a process that was killed by zp_interfaces_clear(). The attach types are
 * numbers of ours where libbpf is older than TCX; the kernel decides.
 *
 * Frames of some devices begin with the IP header (tun, tunnels). Which ones, the programs are told
 * when they are loaded; such a device that comes later is left alone.
 */
#define _GNU_SOURCE
#include "interfaces.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "netns.h"

#define ATTACH_TCX_INGRESS 46
#define ATTACH_TCX_EGRESS  47
#define FILTER_HANDLE	   0x7a70
#define FILTER_PRIORITY	   0x7a70

/* Return: 0, or -errno of the first failure. */
static int attach_filter(unsigned int ifindex, int prog_fd, enum bpf_tc_attach_point point)
{
	LIBBPF_OPTS(bpf_tc_hook, hook, .ifindex = (int)ifindex,
		    .attach_point = BPF_TC_INGRESS | BPF_TC_EGRESS);
	LIBBPF_OPTS(bpf_tc_opts, options, .handle = FILTER_HANDLE, .priority = FILTER_PRIORITY,
		    .prog_fd = prog_fd, .flags = BPF_TC_F_REPLACE);
	int r;

	r = bpf_tc_hook_create(&hook);
	if (r < 0 && r != -EEXIST)
		return r;
	hook.attach_point = point;
	return bpf_tc_attach(&hook, &options);
}

/* Return: 0, also when there are none, or -errno. */
static int detach_filters(unsigned int ifindex)
{
	enum bpf_tc_attach_point points[] = {BPF_TC_INGRESS, BPF_TC_EGRESS};
	int r, first = 0;
	unsigned int i;

	for (i = 0; i < 2; i++) {
		LIBBPF_OPTS(bpf_tc_hook, hook, .ifindex = (int)ifindex, .attach_point = points[i]);
		LIBBPF_OPTS(bpf_tc_opts, options, .handle = FILTER_HANDLE,
			    .priority = FILTER_PRIORITY);

		r = bpf_tc_detach(&hook, &options);
		/* ENOENT: no such filter. EINVAL: no clsact. */
		if (r < 0 && r != -ENOENT && r != -EINVAL && first == 0)
			first = r;
	}
	return first;
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -EBADF;
}

static int attach_links(struct zp_interfaces *interfaces, struct zp_interface *interface)
{
	int fd;

	fd = bpf_link_create(interfaces->ingress_fd, (int)interface->ifindex,
			     (enum bpf_attach_type)ATTACH_TCX_INGRESS, NULL);
	if (fd < 0)
		return fd;
	interface->ingress_link = fd;
	fd = bpf_link_create(interfaces->egress_fd, (int)interface->ifindex,
			     (enum bpf_attach_type)ATTACH_TCX_EGRESS, NULL);
	if (fd < 0)
		return fd;
	interface->egress_link = fd;
	return 0;
}

/* The interface that is not attached wholly is in the list nevertheless, for its end. */
static int attach_one(struct zp_interfaces *interfaces, unsigned int ifindex)
{
	struct zp_interface *interface = &interfaces->attached[interfaces->count];
	int r;

	if (interfaces->count == ZP_MAX_INTERFACES)
		return -E2BIG;
	*interface = (struct zp_interface){ifindex, -EBADF, -EBADF};
	interfaces->count++;
	if (!interfaces->clsact) {
		r = attach_links(interfaces, interface);
		if (r != -EINVAL || interfaces->count > 1 || interface->ingress_link >= 0)
			return r;
		interfaces->clsact = true;
	}
	r = attach_filter(ifindex, interfaces->ingress_fd, BPF_TC_INGRESS);
	if (r == 0)
		r = attach_filter(ifindex, interfaces->egress_fd, BPF_TC_EGRESS);
	return r;
}

/* Return: 1 when its frames begin with an Ethernet header, 0, or -errno. */
static int has_link_header(int socket_fd, const char *name)
{
	struct ifreq request = {0};

	memcpy(request.ifr_name, name, strnlen(name, IFNAMSIZ - 1));
	if (ioctl(socket_fd, SIOCGIFHWADDR, &request) < 0)
		return -errno;
	return request.ifr_hwaddr.sa_family == ARPHRD_ETHER ||
	       request.ifr_hwaddr.sa_family == ARPHRD_LOOPBACK;
}

static bool is_known_bare(const struct zp_interfaces *interfaces, unsigned int ifindex)
{
	int i;

	for (i = 0; i < ZP_MAX_BARE; i++)
		if (interfaces->bare[i] == ifindex)
			return true;
	return false;
}

/* Return: 0 or -errno of what @visit returned first; in the namespace. */
static int for_each(int netns_fd,
		    int (*visit)(const struct if_nameindex *interface, int socket_fd,
				 void *argument),
		    void *argument)
{
	struct zp_netns ns = ZP_NETNS_NONE;
	struct if_nameindex *all = NULL;
	int fd, i, r;

	r = zp_netns_enter(&ns, netns_fd);
	if (r < 0)
		return r;
	fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd >= 0)
		all = if_nameindex();
	r = all ? 0 : -errno;
	for (i = 0; r == 0 && all[i].if_index; i++)
		r = visit(&all[i], fd, argument);
	if (all)
		if_freenameindex(all);
	close_fd(&fd);
	zp_netns_leave(&ns);
	return r;
}

static int note_bare(const struct if_nameindex *interface, int socket_fd, void *argument)
{
	struct zp_interfaces *interfaces = argument;
	int i = 0, r = has_link_header(socket_fd, interface->if_name);

	if (r != 0)
		return r == -ENODEV || r > 0 ? 0 : r;
	while (i < ZP_MAX_BARE && interfaces->bare[i])
		i++;
	if (i == ZP_MAX_BARE)
		return -E2BIG;
	interfaces->bare[i] = interface->if_index;
	return 0;
}

static int attach_new(const struct if_nameindex *interface, int socket_fd, void *argument)
{
	struct zp_interfaces *interfaces = argument;
	int i, r;

	for (i = 0; i < interfaces->count; i++)
		if (interfaces->attached[i].ifindex == interface->if_index)
			return 0;
	r = has_link_header(socket_fd, interface->if_name);
	if (r == 0 && !is_known_bare(interfaces, interface->if_index))
		return 0;
	if (r >= 0)
		r = attach_one(interfaces, interface->if_index);
	return r == -ENODEV ? 0 : r;
}

static void forget_gone(struct zp_interfaces *interfaces)
{
	struct zp_interface *interface;
	char name[IF_NAMESIZE];
	int i;

	for (i = interfaces->count - 1; i >= 0; i--) {
		interface = &interfaces->attached[i];
		if (if_indextoname(interface->ifindex, name))
			continue;
		close_fd(&interface->ingress_link);
		close_fd(&interface->egress_link);
		*interface = interfaces->attached[--interfaces->count];
	}
}

/* zp_interfaces_look() - find the bare ones. Return: 0 or -errno (-E2BIG: more than can be). */
int zp_interfaces_look(struct zp_interfaces *interfaces, int netns_fd)
{
	return for_each(netns_fd, note_bare, interfaces);
}

/*
 * zp_interfaces_attach() - the programs on every interface that they are not on yet
 *
 * Return: 0 or -errno (-E2BIG: there are more than ZP_MAX_INTERFACES); those before the one that
 * failed have them.
 */
int zp_interfaces_attach(struct zp_interfaces *interfaces, int netns_fd)
{
	struct zp_netns ns = ZP_NETNS_NONE;
	int r;

	r = zp_netns_enter(&ns, netns_fd);
	if (r < 0)
		return r;
	forget_gone(interfaces);
	zp_netns_leave(&ns);
	return for_each(netns_fd, attach_new, interfaces);
}

/* zp_interfaces_detach() - take the programs away, also half of them. Idempotent. */
void zp_interfaces_detach(struct zp_interfaces *interfaces, int netns_fd)
{
	struct zp_netns ns = ZP_NETNS_NONE;
	int i;

	for (i = 0; i < interfaces->count; i++) {
		close_fd(&interfaces->attached[i].ingress_link);
		close_fd(&interfaces->attached[i].egress_link);
	}
	if (interfaces->clsact && zp_netns_enter(&ns, netns_fd) == 0) {
		for (i = 0; i < interfaces->count; i++)
			detach_filters(interfaces->attached[i].ifindex);
		zp_netns_leave(&ns);
	}
	interfaces->count = 0;
	close_fd(&interfaces->ingress_fd);
	close_fd(&interfaces->egress_fd);
}

static int clear_one(const struct if_nameindex *interface, int socket_fd, void *argument)
{
	int *first = argument, r = detach_filters(interface->if_index);

	(void)socket_fd;
	if (*first == 0)
		*first = r;
	return 0;
}

/*
 * zp_interfaces_clear() - take away the filters that a killed process has left in a namespace
 *
 * Nobody else may be using the namespace: a living shim's filters look the same.
 *
 * Return: 0, also when there are none, or -errno of the first interface that kept its own.
 */
int zp_interfaces_clear(int netns_fd)
{
	int first = 0, r = for_each(netns_fd, clear_one, &first);

	return r < 0 ? r : first;
}
