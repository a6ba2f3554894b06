// SPDX-License-Identifier: Apache-2.0
/*
 * Owns the BPF programs and maps of one pod. Loading is a transaction: either all of it stands, on
 * every interface of the pod, or nothing is left.
 *
 * libbpf's object is closed as soon as the programs are attached: the kernel keeps what links and
 * map descriptors hold, and the object's copies of ELF and BTF would cost each pod memory for
 * nothing. Links (TCX) go with the process. A kernel without TCX refuses the first link with
 * EINVAL; then filters on clsact are used, which outlive us: deinit removes them, and after a
 * process that was killed zp_redirector_clear().
 *
 * The attach types are numbers of ours where libbpf is older than TCX; the kernel decides.
 */
#define _GNU_SOURCE
#include "redirector.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "netns.h"

#define ATTACH_TCX_INGRESS 46
#define ATTACH_TCX_EGRESS  47
#define FILTER_HANDLE	   0x7a70
#define FILTER_PRIORITY	   0x7a70

static uint16_t be(uint16_t port)
{
	return __builtin_bswap16(port);
}

static int quiet(enum libbpf_print_level level, const char *format, va_list arguments)
{
	(void)level;
	(void)format;
	(void)arguments;
	return 0;
}

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

static int attach_interface(struct zp_redirector *redirector, unsigned int ifindex, int ingress_fd,
			    int egress_fd, bool *clsact)
{
	int fd, r;

	if (redirector->links + 2 > ZP_MAX_LINKS || redirector->filters + 1 > ZP_MAX_LINKS / 2)
		return -E2BIG;
	if (!*clsact) {
		fd = bpf_link_create(ingress_fd, (int)ifindex,
				     (enum bpf_attach_type)ATTACH_TCX_INGRESS, NULL);
		if (fd >= 0) {
			redirector->link_fds[redirector->links++] = fd;
			fd = bpf_link_create(egress_fd, (int)ifindex,
					     (enum bpf_attach_type)ATTACH_TCX_EGRESS, NULL);
			if (fd < 0)
				return fd;
			redirector->link_fds[redirector->links++] = fd;
			return 0;
		}
		if (fd != -EINVAL || redirector->links)
			return fd;
		*clsact = true;
	}
	redirector->filter_ifindex[redirector->filters++] = ifindex;
	r = attach_filter(ifindex, ingress_fd, BPF_TC_INGRESS);
	if (r == 0)
		r = attach_filter(ifindex, egress_fd, BPF_TC_EGRESS);
	return r;
}

static int attach_all(struct zp_redirector *redirector, int netns_fd, struct bpf_object *object,
		      bool clsact, const char **ret_step)
{
	struct zp_netns ns = ZP_NETNS_NONE;
	struct if_nameindex *interfaces;
	int ingress_fd, egress_fd, i, r;

	ingress_fd = bpf_program__fd(bpf_object__find_program_by_name(object, "zp_ingress"));
	egress_fd = bpf_program__fd(bpf_object__find_program_by_name(object, "zp_egress"));
	if (ingress_fd < 0 || egress_fd < 0)
		return -ENOENT;
	r = zp_netns_enter(&ns, netns_fd);
	if (r < 0)
		return r;
	interfaces = if_nameindex();
	r = interfaces ? 0 : -errno;
	for (i = 0; r == 0 && interfaces[i].if_index; i++)
		r = attach_interface(redirector, interfaces[i].if_index, ingress_fd, egress_fd,
				     &clsact);
	if (interfaces)
		if_freenameindex(interfaces);
	zp_netns_leave(&ns);
	if (r == -E2BIG)
		*ret_step = "attach the BPF programs to more than 8 interfaces";
	return r;
}

static int take_map(struct bpf_object *object, const char *name, int *ret_fd)
{
	int fd = bpf_object__find_map_fd_by_name(object, name);

	if (fd < 0)
		return fd;
	fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (fd < 0)
		return -errno;
	*ret_fd = fd;
	return 0;
}

static int set_loopback(struct bpf_object *object, bool count_loopback)
{
	struct bpf_map *map = bpf_object__find_map_by_name(object, ".rodata");
	uint8_t value = count_loopback;

	if (!map)
		return -ENOENT;
	return bpf_map__set_initial_value(map, &value, sizeof(value));
}

static int take_all(struct zp_redirector *redirector, struct bpf_object *object)
{
	int r;

	r = take_map(object, "ports", &redirector->ports_fd);
	if (r == 0)
		r = take_map(object, "listeners", &redirector->listeners_fd);
	if (r == 0)
		r = take_map(object, "flows", &redirector->flows_fd);
	if (r == 0)
		r = take_map(object, "opening", &redirector->opening_fd);
	if (r == 0)
		r = take_map(object, "counters", &redirector->counters_fd);
	return r;
}

/*
 * zp_redirector_init() - load the programs and attach them in a network namespace
 * @object: path of the compiled BPF object
 * @ret_step: set on failure to what was being done
 *
 * Return: 0, or -errno with nothing left behind.
 */
int zp_redirector_init(struct zp_redirector *redirector, const char *object_path, int netns_fd,
		       bool count_loopback, bool force_clsact, const char **ret_step)
{
	struct bpf_object *object;
	int r;

	*redirector = (struct zp_redirector){
		.ports_fd = -EBADF,
		.listeners_fd = -EBADF,
		.flows_fd = -EBADF,
		.opening_fd = -EBADF,
		.counters_fd = -EBADF,
	};
	libbpf_set_print(quiet);
	redirector->cpus = libbpf_num_possible_cpus();
	*ret_step = "open the BPF object";
	object = bpf_object__open_file(object_path, NULL);
	if (!object)
		return -errno;
	r = set_loopback(object, count_loopback);
	if (r == 0) {
		*ret_step = "load the BPF programs";
		r = bpf_object__load(object);
	}
	if (r == 0)
		r = take_all(redirector, object);
	if (r == 0) {
		*ret_step = "attach the BPF programs to the pod's interfaces";
		r = attach_all(redirector, netns_fd, object, force_clsact, ret_step);
	}
	bpf_object__close(object);
	if (r < 0)
		zp_redirector_deinit(redirector, netns_fd);
	return r;
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -EBADF;
}

/* zp_redirector_deinit() - detach and let go; also of one that is half made. Idempotent. */
void zp_redirector_deinit(struct zp_redirector *redirector, int netns_fd)
{
	struct zp_netns ns = ZP_NETNS_NONE;

	while (redirector->links > 0)
		close(redirector->link_fds[--redirector->links]);
	if (redirector->filters > 0 && zp_netns_enter(&ns, netns_fd) == 0) {
		while (redirector->filters > 0)
			detach_filters(redirector->filter_ifindex[--redirector->filters]);
		zp_netns_leave(&ns);
	}
	close_fd(&redirector->ports_fd);
	close_fd(&redirector->listeners_fd);
	close_fd(&redirector->flows_fd);
	close_fd(&redirector->opening_fd);
	close_fd(&redirector->counters_fd);
}

/*
 * zp_redirector_clear() - take away the filters that a killed process has left in a namespace
 *
 * Nobody else may be using the namespace: a living redirector's filters look the same.
 *
 * Return: 0, also when there are none, or -errno of the first interface that kept its own.
 */
int zp_redirector_clear(int netns_fd)
{
	struct zp_netns ns = ZP_NETNS_NONE;
	struct if_nameindex *interfaces;
	int i, r, one;

	libbpf_set_print(quiet);
	r = zp_netns_enter(&ns, netns_fd);
	if (r < 0)
		return r;
	interfaces = if_nameindex();
	r = interfaces ? 0 : -errno;
	for (i = 0; interfaces && interfaces[i].if_index; i++) {
		one = detach_filters(interfaces[i].if_index);
		if (r == 0)
			r = one;
	}
	if (interfaces)
		if_freenameindex(interfaces);
	zp_netns_leave(&ns);
	return r;
}

/* zp_redirector_add_port() - track a port, awake. Return: 0 or -errno (-EEXIST: tracked). */
int zp_redirector_add_port(struct zp_redirector *redirector, uint16_t port, uint16_t activator)
{
	struct zp_port value = {.activator_port_be = be(activator)};
	uint16_t port_be = be(port), activator_be = be(activator);
	int r;

	r = bpf_map_update_elem(redirector->ports_fd, &port_be, &value, BPF_NOEXIST);
	if (r < 0)
		return r;
	r = bpf_map_update_elem(redirector->listeners_fd, &activator_be, &port_be, BPF_ANY);
	if (r < 0)
		bpf_map_delete_elem(redirector->ports_fd, &port_be);
	return r;
}

void zp_redirector_remove_port(struct zp_redirector *redirector, uint16_t port, uint16_t activator)
{
	uint16_t port_be = be(port), activator_be = be(activator);

	bpf_map_delete_elem(redirector->ports_fd, &port_be);
	bpf_map_delete_elem(redirector->listeners_fd, &activator_be);
}

/*
 * zp_redirector_set_asleep() - switch the redirect of a port
 *
 * The time of last activity is carried over; a stamp that falls between the two calls is lost,
 * which the next packet makes good.
 *
 * Return: 0 or -errno.
 */
int zp_redirector_set_asleep(struct zp_redirector *redirector, uint16_t port, bool asleep)
{
	uint16_t port_be = be(port);
	struct zp_port value;
	int r;

	r = bpf_map_lookup_elem(redirector->ports_fd, &port_be, &value);
	if (r < 0)
		return r;
	if (value.asleep == asleep)
		return 0;
	value.asleep = asleep;
	return bpf_map_update_elem(redirector->ports_fd, &port_be, &value, BPF_EXIST);
}

int zp_redirector_last_activity(struct zp_redirector *redirector, uint16_t port, uint64_t *ret_ns)
{
	uint16_t port_be = be(port);
	struct zp_port value;
	int r;

	r = bpf_map_lookup_elem(redirector->ports_fd, &port_be, &value);
	if (r == 0)
		*ret_ns = value.last_activity_ns;
	return r;
}

/*
 * zp_redirector_keep_flow() - a connection was accepted: it is not forgotten any more
 * @ret_route: what tells it from a later one between the same ports
 *
 * Return: 0, or -errno (-E2BIG: too many).
 */
int zp_redirector_keep_flow(struct zp_redirector *redirector, const struct zp_flow *flow,
			    uint16_t activator, struct zp_route *ret_route)
{
	struct zp_route route = {.activator_port_be = be(activator)};
	int r;

	/* Forgotten already, in a flood: kept all the same, its next packet comes here again. */
	bpf_map_lookup_elem(redirector->opening_fd, flow, &route);
	r = bpf_map_update_elem(redirector->flows_fd, flow, &route, BPF_ANY);
	if (r < 0)
		return r;
	bpf_map_delete_elem(redirector->opening_fd, flow);
	*ret_route = route;
	return 0;
}

/* zp_redirector_forget_flow() - it has ended; a later one between the same ports is left alone. */
void zp_redirector_forget_flow(struct zp_redirector *redirector, const struct zp_flow *flow,
			       const struct zp_route *route)
{
	struct zp_route current;

	if (bpf_map_lookup_elem(redirector->flows_fd, flow, &current) == 0 &&
	    current.isn_be == route->isn_be)
		bpf_map_delete_elem(redirector->flows_fd, flow);
}

/* zp_redirector_counter() - one counter, summed over the CPUs. Return: 0 or -errno. */
int zp_redirector_counter(struct zp_redirector *redirector, unsigned int which, uint64_t *ret_value)
{
	uint64_t *values, sum = 0;
	int cpu, r;

	values = calloc((size_t)redirector->cpus, sizeof(*values));
	if (!values)
		return -ENOMEM;
	r = bpf_map_lookup_elem(redirector->counters_fd, &which, values);
	for (cpu = 0; r == 0 && cpu < redirector->cpus; cpu++)
		sum += values[cpu];
	free(values);
	if (r == 0)
		*ret_value = sum;
	return r;
}
