/* SPDX-License-Identifier: Apache-2.0 */
#ifndef ZP_DIAG_H
#define ZP_DIAG_H

#include <stdint.h>

/* The accept queue of a listening port; of several sockets the longest, the smallest backlog. */
struct zp_listener {
	unsigned int sockets, queued, backlog;
};

int zp_diag_open(int netns_fd, int *ret_fd);
int zp_diag_listener(int diag_fd, uint8_t protocol, uint16_t port,
		     struct zp_listener *ret_listener);

#endif
