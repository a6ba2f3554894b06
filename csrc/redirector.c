// SPDX-License-Identifier: Apache-2.0
/*
 * Owns the BPF programs and maps of one pod. Loading is a transaction: either all of it stands, on
 * every interface of the pod, or nothing is left.
 *
 * libbpf's object is closed as soon as the programs are attached: the kernel keeps what links and
 * map descriptors hold, and the object's copies of ELF and BTF would cost each pod memory for
 * nothing.
 */
#define _GNU_SOURCE
#include "redirector.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PORTS_SIZE (ZP_MAX_PORTS * sizeof(struct zp_port)) /* mmap(2) rounds it up */
_Static_assert(ZP_MAX_PORTS <= 64, "places_taken has a bit for each");

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

/* A copy of the descriptor, which the object takes along when it is closed. */
static int take(int fd, int *ret_fd)
{
	if (fd < 0)
		return fd;
	fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (fd < 0)
		return -errno;
	*ret_fd = fd;
	return 0;
}

static int take_map(struct bpf_object *object, const char *name, int *ret_fd)
{
	return take(bpf_object__find_map_fd_by_name(object, name), ret_fd);
}

static int set_up(struct zp_redirector *redirector, struct bpf_object *object,
		  const struct zp_activator_options *options)
{
	struct bpf_map *map = bpf_object__find_map_by_name(object, ".rodata");
	struct bpf_map *ring = bpf_object__find_map_by_name(object, "parked");
	struct zp_settings settings = {.count_loopback = options->count_loopback,
				       .any_ignored = options->ignored_count > 0};

	int r;

	if (!map || !ring)
		return -ENOENT;
	if (options->udp) {
		r = bpf_map__set_max_entries(ring, ZP_RING_SIZE_UDP);
		if (r < 0)
			return r;
	}
	memcpy(settings.bare_interfaces, redirector->interfaces.bare,
	       sizeof(settings.bare_interfaces));
	return bpf_map__set_initial_value(map, &settings, sizeof(settings));
}

static int map_ports(struct zp_redirector *redirector, struct bpf_object *object)
{
	int fd = bpf_object__find_map_fd_by_name(object, "ports");
	void *memory;

	if (fd < 0)
		return fd;
	memory = mmap(NULL, PORTS_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (memory == MAP_FAILED)
		return -errno;
	redirector->ports = memory;
	return 0;
}

static int note_ignored(struct bpf_object *object, const struct zp_activator_options *options)
{
	int fd = bpf_object__find_map_fd_by_name(object, "ignored"), r = 0;
	uint8_t one = 1;
	size_t i;

	if (fd < 0)
		return fd;
	for (i = 0; i < options->ignored_count && r == 0; i++)
		r = bpf_map_update_elem(fd, &options->ignored[i], &one, BPF_ANY);
	return r;
}

static int take_program(struct bpf_object *object, const char *name, int *ret_fd)
{
	return take(bpf_program__fd(bpf_object__find_program_by_name(object, name)), ret_fd);
}

static int take_all(struct zp_redirector *redirector, struct bpf_object *object)
{
	int r;

	r = map_ports(redirector, object);
	if (r == 0)
		r = take_map(object, "places", &redirector->places_fd);
	if (r == 0)
		r = take_map(object, "listeners", &redirector->listeners_fd);
	if (r == 0)
		r = take_map(object, "flows", &redirector->flows_fd);
	if (r == 0)
		r = take_map(object, "opening", &redirector->opening_fd);
	if (r == 0)
		r = take_map(object, "counters", &redirector->counters_fd);
	if (r == 0)
		r = take_map(object, "parked", &redirector->parked_fd);
	if (r == 0)
		r = take_map(object, "node_addresses", &redirector->node_fd);
	if (r == 0)
		r = take_map(object, "quiet", &redirector->quiet_fd);
	if (r == 0)
		r = take_program(object, "zp_ingress", &redirector->interfaces.ingress_fd);
	if (r == 0)
		r = take_program(object, "zp_egress", &redirector->interfaces.egress_fd);
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
		       const struct zp_activator_options *options, const char **ret_step)
{
	struct bpf_object *object;
	int r;

	*redirector = ZP_REDIRECTOR_NONE;
	redirector->interfaces.clsact = options->force_clsact;
	libbpf_set_print(quiet);
	redirector->cpus = libbpf_num_possible_cpus();
	*ret_step = "look at the pod's interfaces";
	r = zp_interfaces_look(&redirector->interfaces, netns_fd);
	if (r == -E2BIG)
		*ret_step = "attach the BPF programs to more than 4 interfaces without Ethernet";
	if (r < 0)
		return r;
	*ret_step = "open the BPF object";
	object = bpf_object__open_file(object_path, NULL);
	if (!object)
		return -errno;
	r = set_up(redirector, object, options);
	if (r == 0) {
		*ret_step = "load the BPF programs";
		r = bpf_object__load(object);
	}
	if (r == 0)
		r = take_all(redirector, object);
	if (r == 0) {
		*ret_step = "note the sources to be ignored";
		r = note_ignored(object, options);
	}
	bpf_object__close(object);
	if (r == 0) {
		*ret_step = "attach the BPF programs to the pod's interfaces";
		r = zp_interfaces_attach(&redirector->interfaces, netns_fd);
	}
	if (r == -E2BIG)
		*ret_step = "attach the BPF programs to more than 8 interfaces";
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
	zp_interfaces_detach(&redirector->interfaces, netns_fd);
	if (redirector->ports)
		munmap(redirector->ports, PORTS_SIZE);
	redirector->ports = NULL;
	close_fd(&redirector->places_fd);
	close_fd(&redirector->listeners_fd);
	close_fd(&redirector->flows_fd);
	close_fd(&redirector->opening_fd);
	close_fd(&redirector->counters_fd);
	ring_buffer__free(redirector->ring);
	redirector->ring = NULL;
	close_fd(&redirector->parked_fd);
	close_fd(&redirector->node_fd);
	close_fd(&redirector->quiet_fd);
}

/* zp_redirector_attach() - to interfaces that have come since. Return: 0 or -errno. */
int zp_redirector_attach(struct zp_redirector *redirector, int netns_fd)
{
	return zp_interfaces_attach(&redirector->interfaces, netns_fd);
}

static struct zp_port_key key_of(const struct zp_wake_port *port)
{
	return (struct zp_port_key){.port_be = be(port->number), .protocol = port->protocol};
}

/*
 * zp_redirector_add_port() - track a port, awake
 * @activator: the activator's port that it is redirected to; 0: none
 * @ret_port: what the programs see of it and note about it, until it is removed
 *
 * Return: 0 or -errno (-EEXIST: tracked; -E2BIG: too many).
 */
int zp_redirector_add_port(struct zp_redirector *redirector, const struct zp_wake_port *port,
			   uint16_t activator, struct zp_port **ret_port)
{
	struct zp_port_key key = key_of(port);
	uint16_t activator_be = be(activator);
	uint32_t place = 0;
	int r = 0;

	while (place < ZP_MAX_PORTS && redirector->places_taken & 1ull << place)
		place++;
	if (place == ZP_MAX_PORTS)
		return -E2BIG;
	redirector->ports[place] = (struct zp_port){.activator_port_be = activator_be};
	if (activator)
		r = bpf_map_update_elem(redirector->listeners_fd, &activator_be, &key.port_be,
					BPF_ANY);
	if (r < 0)
		return r;
	r = bpf_map_update_elem(redirector->places_fd, &key, &place, BPF_NOEXIST);
	if (r < 0) {
		if (activator)
			bpf_map_delete_elem(redirector->listeners_fd, &activator_be);
		return r;
	}
	redirector->places_taken |= 1ull << place;
	*ret_port = &redirector->ports[place];
	return 0;
}

void zp_redirector_remove_port(struct zp_redirector *redirector, const struct zp_wake_port *port,
			       struct zp_port *shared)
{
	struct zp_port_key key = key_of(port);

	bpf_map_delete_elem(redirector->places_fd, &key);
	if (shared->activator_port_be)
		bpf_map_delete_elem(redirector->listeners_fd, &shared->activator_port_be);
	redirector->places_taken &= ~(1ull << (shared - redirector->ports));
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

/*
 * zp_redirector_watch_parked() - have @note called with each record of the ring
 *
 * By zp_redirector_read_parked(). Return: a descriptor that is readable when there is one, or
 * -errno.
 */
int zp_redirector_watch_parked(struct zp_redirector *redirector,
			       int (*note)(void *argument, void *record, size_t size),
			       void *argument)
{
	redirector->ring = ring_buffer__new(redirector->parked_fd, note, argument, NULL);
	if (!redirector->ring)
		return -errno;
	return ring_buffer__epoll_fd(redirector->ring);
}

void zp_redirector_read_parked(struct zp_redirector *redirector)
{
	ring_buffer__consume(redirector->ring);
}

/*
 * zp_redirector_sweep_quiet() - forget those of which nothing was heard since
 *
 * Return: when something was heard of any other last; 0: there is none.
 */
uint64_t zp_redirector_sweep_quiet(struct zp_redirector *redirector, uint64_t before_ns)
{
	struct zp_flow key, next;
	struct zp_quiet value;
	uint64_t latest_ns = 0;
	int r;

	r = bpf_map_get_next_key(redirector->quiet_fd, NULL, &next);
	while (r == 0) {
		key = next;
		r = bpf_map_get_next_key(redirector->quiet_fd, &key, &next);
		if (bpf_map_lookup_elem(redirector->quiet_fd, &key, &value) < 0)
			continue;
		if (value.last_ns < before_ns)
			bpf_map_delete_elem(redirector->quiet_fd, &key);
		else if (value.last_ns > latest_ns)
			latest_ns = value.last_ns;
	}
	return latest_ns;
}

/* zp_redirector_count_flow() - a connection from the node to the awake app is no probe. */
void zp_redirector_count_flow(struct zp_redirector *redirector, const struct zp_flow *flow)
{
	bpf_map_delete_elem(redirector->quiet_fd, flow);
}

/* zp_redirector_is_settled() - whether such a connection lives and is taken for a probe. */
bool zp_redirector_is_settled(const struct zp_redirector *redirector, const struct zp_flow *flow)
{
	struct zp_quiet value;

	return bpf_map_lookup_elem(redirector->quiet_fd, flow, &value) == 0 &&
	       value.state == ZP_QUIET_SPOKEN;
}

/*
 * zp_redirector_settle_flow() - such a connection is a probe, whatever comes of it
 *
 * A FIN that passes in this moment may be forgotten; then the connection is swept in the end.
 */
void zp_redirector_settle_flow(struct zp_redirector *redirector, const struct zp_flow *flow)
{
	struct zp_quiet value;

	if (bpf_map_lookup_elem(redirector->quiet_fd, flow, &value) < 0 ||
	    value.state == ZP_QUIET_SPOKEN)
		return;
	value.state = ZP_QUIET_SPOKEN;
	bpf_map_update_elem(redirector->quiet_fd, flow, &value, BPF_EXIST);
}

static bool is_among(const uint8_t address[16], uint8_t (*addresses)[16], size_t count)
{
	size_t i;

	for (i = 0; i < count; i++)
		if (memcmp(address, addresses[i], 16) == 0)
			return true;
	return false;
}

/* zp_redirector_set_node() - these are the node's addresses, and no others. Return: 0 or -errno. */
int zp_redirector_set_node(struct zp_redirector *redirector, uint8_t (*addresses)[16], size_t count)
{
	uint8_t key[16], next[16], one = 1;
	size_t i;
	int r;

	r = bpf_map_get_next_key(redirector->node_fd, NULL, next);
	while (r == 0) {
		memcpy(key, next, sizeof(key));
		r = bpf_map_get_next_key(redirector->node_fd, key, next);
		if (!is_among(key, addresses, count))
			bpf_map_delete_elem(redirector->node_fd, key);
	}
	for (i = 0; i < count; i++) {
		r = bpf_map_update_elem(redirector->node_fd, addresses[i], &one, BPF_ANY);
		if (r < 0)
			return r;
	}
	return 0;
}

/* zp_redirector_is_of_node() - whether an address is one of the node's. */
bool zp_redirector_is_of_node(const struct zp_redirector *redirector, const uint8_t address[16])
{
	uint8_t ignored;

	return bpf_map_lookup_elem(redirector->node_fd, address, &ignored) == 0;
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
