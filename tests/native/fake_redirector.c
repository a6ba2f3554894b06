// SPDX-License-Identifier: Apache-2.0
/* The redirector without BPF: notes what it is told; tests connect to the activator's ports. */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "check.h"
#include "redirector.h"

static struct {
	uint16_t port, activator;
	struct zp_port shared;
} ports[ZP_MAX_PORTS];

static struct {
	int (*note)(void *argument, void *record, size_t size);
	void *argument;
	bool full;
	size_t size;
	char record[sizeof(struct zp_parked) + 2048] __attribute__((aligned(8)));
} ring;

static int find(uint16_t port)
{
	int i;

	for (i = 0; i < ZP_MAX_PORTS; i++)
		if (ports[i].port == port)
			return i;
	return -1;
}

uint16_t zp_fake_activator_port(uint16_t port)
{
	int i = find(port);

	return i < 0 ? 0 : ports[i].activator;
}

bool zp_fake_asleep(uint16_t port)
{
	int i = find(port);

	return i >= 0 && __atomic_load_n(&ports[i].shared.mode, __ATOMIC_SEQ_CST);
}

int zp_redirector_init(struct zp_redirector *redirector, const char *object, int netns_fd,
		       const struct zp_activator_options *options, const char **ret_step)
{
	(void)redirector;
	(void)netns_fd;
	(void)options;
	if (strcmp(object, "missing") == 0) {
		*ret_step = "open the BPF object";
		return -ENOENT;
	}
	memset(ports, 0, sizeof(ports));
	ring.full = false;
	return 0;
}

void zp_redirector_deinit(struct zp_redirector *redirector, int netns_fd)
{
	(void)netns_fd;
	if (redirector->parked_fd >= 0)
		close(redirector->parked_fd);
}

int zp_redirector_attach(struct zp_redirector *redirector, int netns_fd)
{
	(void)redirector;
	(void)netns_fd;
	return 0;
}

int zp_redirector_add_port(struct zp_redirector *redirector, const struct zp_wake_port *wake,
			   uint16_t activator, struct zp_port **ret_port)
{
	uint16_t port = wake->number;
	int i;

	(void)redirector;
	if (find(port) >= 0)
		return -EEXIST;
	i = find(0);
	if (i < 0)
		return -E2BIG;
	ports[i].port = port;
	ports[i].activator = activator;
	ports[i].shared.last_activity_ns = port;
	*ret_port = &ports[i].shared;
	return 0;
}

void zp_redirector_remove_port(struct zp_redirector *redirector, const struct zp_wake_port *wake,
			       struct zp_port *shared)
{
	int i = find(wake->number);

	(void)redirector;
	(void)shared;
	if (i >= 0)
		memset(&ports[i], 0, sizeof(ports[i]));
}

int zp_redirector_keep_flow(struct zp_redirector *redirector, const struct zp_flow *flow,
			    uint16_t activator, struct zp_route *ret_route)
{
	(void)redirector;
	(void)flow;
	ret_route->activator_port_be = activator;
	return 0;
}

void zp_redirector_forget_flow(struct zp_redirector *redirector, const struct zp_flow *flow,
			       const struct zp_route *route)
{
	(void)redirector;
	(void)flow;
	(void)route;
}

int zp_redirector_counter(struct zp_redirector *redirector, unsigned int which, uint64_t *ret_value)
{
	(void)redirector;
	*ret_value = which;
	return 0;
}

int zp_redirector_watch_parked(struct zp_redirector *redirector,
			       int (*note)(void *argument, void *record, size_t size),
			       void *argument)
{
	ring.note = note;
	ring.argument = argument;
	redirector->parked_fd = eventfd(0, EFD_CLOEXEC); /* the thread is not told by it */
	return redirector->parked_fd;
}

void zp_redirector_read_parked(struct zp_redirector *redirector)
{
	(void)redirector;
	if (!ring.full)
		return;
	ring.full = false;
	ring.note(ring.argument, ring.record, ring.size);
}

void zp_fake_park(uint16_t port)
{
	struct zp_parked *parked = (struct zp_parked *)ring.record;

	memset(ring.record, 0, sizeof(ring.record));
	parked->flow.local_port_be = htons(port);
	parked->protocol = IPPROTO_TCP;
	parked->ifindex = 1;
	parked->length = 40;
	parked->transport = 20;
	parked->frame[0] = 4 << 4; /* to 0.0.0.0: it goes nowhere */
	ring.size = sizeof(*parked) + parked->length;
	ring.full = true;
}

void zp_fake_ask(uint16_t port, uint16_t from, uint8_t kind, const char *bytes, size_t size)
{
	struct zp_parked *parked = (struct zp_parked *)ring.record;
	size_t total = 40 + size;

	zp_fake_park(port);
	parked->kind = kind;
	parked->flow.remote_port_be = htons(from);
	parked->frame[2] = (uint8_t)(total >> 8);
	parked->frame[3] = (uint8_t)total;
	parked->frame[20 + 12] = 5 << 4;			/* the words of TCP's header */
	parked->length = total < 2048 ? (uint32_t)total : 2048; /* cut off, as by the programs */
	memcpy(parked->frame + 40, bytes, parked->length - 40);
	ring.size = sizeof(*parked) + parked->length;
}

int zp_redirector_set_node(struct zp_redirector *redirector, uint8_t (*addresses)[16], size_t count)
{
	(void)redirector;
	(void)addresses;
	(void)count;
	return 0;
}

uint64_t zp_redirector_sweep_quiet(struct zp_redirector *redirector, uint64_t before_ns)
{
	(void)redirector;
	(void)before_ns;
	return 0;
}

void zp_redirector_count_flow(struct zp_redirector *redirector, const struct zp_flow *flow)
{
	(void)redirector;
	(void)flow;
}

bool zp_redirector_is_settled(const struct zp_redirector *redirector, const struct zp_flow *flow)
{
	(void)redirector;
	(void)flow;
	return false; /* as if all had ended before they are asked of */
}

void zp_redirector_settle_flow(struct zp_redirector *redirector, const struct zp_flow *flow)
{
	(void)redirector;
	(void)flow;
}

bool zp_redirector_is_of_node(const struct zp_redirector *redirector, const uint8_t address[16])
{
	(void)redirector;
	return address[15] == 1; /* as 127.0.0.1 and ::1 */
}
