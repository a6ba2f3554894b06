/* SPDX-License-Identifier: Apache-2.0 */
#ifndef ZP_REDIRECTOR_USER_H
#define ZP_REDIRECTOR_USER_H

#include <stdbool.h>
#include <stdint.h>

#include "activator.h"
#include "interfaces.h"

/* The BPF programs of one pod and their maps. */
struct zp_redirector {
	struct zp_interfaces interfaces;
	int places_fd, listeners_fd, flows_fd, opening_fd, counters_fd, parked_fd, node_fd,
		quiet_fd;
	struct ring_buffer *ring;
	struct zp_port *ports; /* ZP_MAX_PORTS, in memory that the programs share; NULL: none */
	uint64_t places_taken; /* a bit for each */
	int cpus;
};

#define ZP_REDIRECTOR_NONE                                                                         \
	(struct zp_redirector)                                                                     \
	{                                                                                          \
		.interfaces = ZP_INTERFACES_NONE, .places_fd = -EBADF, .listeners_fd = -EBADF,     \
		.flows_fd = -EBADF, .opening_fd = -EBADF, .counters_fd = -EBADF,                   \
		.parked_fd = -EBADF, .node_fd = -EBADF, .quiet_fd = -EBADF                         \
	}

int zp_redirector_init(struct zp_redirector *redirector, const char *object, int netns_fd,
		       const struct zp_activator_options *options, const char **ret_step);
int zp_redirector_attach(struct zp_redirector *redirector, int netns_fd);
void zp_redirector_deinit(struct zp_redirector *redirector, int netns_fd);
int zp_redirector_add_port(struct zp_redirector *redirector, const struct zp_wake_port *port,
			   uint16_t activator, struct zp_port **ret_port);
void zp_redirector_remove_port(struct zp_redirector *redirector, const struct zp_wake_port *port,
			       struct zp_port *shared);
int zp_redirector_watch_parked(struct zp_redirector *redirector,
			       int (*note)(void *argument, void *record, size_t size),
			       void *argument);
void zp_redirector_count_flow(struct zp_redirector *redirector, const struct zp_flow *flow);
bool zp_redirector_is_settled(const struct zp_redirector *redirector, const struct zp_flow *flow);
void zp_redirector_settle_flow(struct zp_redirector *redirector, const struct zp_flow *flow);
bool zp_redirector_is_of_node(const struct zp_redirector *redirector, const uint8_t address[16]);
uint64_t zp_redirector_sweep_quiet(struct zp_redirector *redirector, uint64_t before_ns);
void zp_redirector_read_parked(struct zp_redirector *redirector);
int zp_redirector_set_node(struct zp_redirector *redirector, uint8_t (*addresses)[16],
			   size_t count);
int zp_redirector_keep_flow(struct zp_redirector *redirector, const struct zp_flow *flow,
			    uint16_t activator, struct zp_route *ret_route);
void zp_redirector_forget_flow(struct zp_redirector *redirector, const struct zp_flow *flow,
			       const struct zp_route *route);
int zp_redirector_counter(struct zp_redirector *redirector, unsigned int which,
			  uint64_t *ret_value);

#endif
