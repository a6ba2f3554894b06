/* SPDX-License-Identifier: Apache-2.0 */
#ifndef ZP_REDIRECTOR_USER_H
#define ZP_REDIRECTOR_USER_H

#include <stdbool.h>
#include <stdint.h>

#include "../bpf/redirector.h"

#define ZP_MAX_LINKS 16

/* The BPF programs of one pod: maps, links, and what is needed to take clsact filters away. */
struct zp_redirector {
	int ports_fd, listeners_fd, flows_fd, opening_fd, counters_fd;
	int link_fds[ZP_MAX_LINKS];
	unsigned int filter_ifindex[ZP_MAX_LINKS]; /* clsact: no link keeps these */
	int links, filters;
	int cpus;
};

int zp_redirector_init(struct zp_redirector *redirector, const char *object, int netns_fd,
		       bool count_loopback, bool force_clsact, const char **ret_step);
void zp_redirector_deinit(struct zp_redirector *redirector, int netns_fd);
int zp_redirector_clear(int netns_fd);
int zp_redirector_add_port(struct zp_redirector *redirector, uint16_t port, uint16_t activator);
void zp_redirector_remove_port(struct zp_redirector *redirector, uint16_t port, uint16_t activator);
int zp_redirector_set_asleep(struct zp_redirector *redirector, uint16_t port, bool asleep);
int zp_redirector_last_activity(struct zp_redirector *redirector, uint16_t port, uint64_t *ret_ns);
int zp_redirector_keep_flow(struct zp_redirector *redirector, const struct zp_flow *flow,
			    uint16_t activator, struct zp_route *ret_route);
void zp_redirector_forget_flow(struct zp_redirector *redirector, const struct zp_flow *flow,
			       const struct zp_route *route);
int zp_redirector_counter(struct zp_redirector *redirector, unsigned int which,
			  uint64_t *ret_value);

#endif
