/* SPDX-License-Identifier: Apache-2.0 */
#ifndef ZP_INTERFACES_H
#define ZP_INTERFACES_H

#include <stdbool.h>
#include <stdint.h>

#include "../bpf/redirector.h"

#define ZP_MAX_INTERFACES 8

/* An interface and our programs on it. */
struct zp_interface {
	unsigned int ifindex;
	int ingress_link, egress_link; /* with clsact -EBADF: no link keeps its filters */
};

/* The interfaces of one pod. */
struct zp_interfaces {
	struct zp_interface attached[ZP_MAX_INTERFACES];
	int count;
	bool clsact;
	int ingress_fd, egress_fd;  /* the programs */
	uint32_t bare[ZP_MAX_BARE]; /* as the programs know them */
};

#define ZP_INTERFACES_NONE                                                                         \
	(struct zp_interfaces)                                                                     \
	{                                                                                          \
		.ingress_fd = -EBADF, .egress_fd = -EBADF                                          \
	}

int zp_interfaces_look(struct zp_interfaces *interfaces, int netns_fd);
int zp_interfaces_attach(struct zp_interfaces *interfaces, int netns_fd);
void zp_interfaces_detach(struct zp_interfaces *interfaces, int netns_fd);
int zp_interfaces_clear(int netns_fd);

#endif
