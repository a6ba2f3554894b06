/* SPDX-License-Identifier: Apache-2.0 */
#ifndef ZP_NETNS_H
#define ZP_NETNS_H

/* The calling thread inside another network namespace, from enter to leave. */
struct zp_netns {
	int home_fd;
};

#define ZP_NETNS_NONE ((struct zp_netns){.home_fd = -EBADF})

int zp_netns_enter(struct zp_netns *ns, int netns_fd);
void zp_netns_leave(struct zp_netns *ns);
int zp_netns_socket(int netns_fd, int family, int type, int protocol, int *ret_fd);

#endif
