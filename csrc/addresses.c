// SPDX-License-Identifier: Apache-2.0
/*
 * The addresses of the node, by which a kubelet's probes come: read from the kernel (rtnetlink),
 * and again when it says that one has come or gone.
 *
 * Loopback and link-local addresses are left out: every pod has the same, and a node with a hundred
 * pods gets a link-local address with each of them, of which a hundred shims would be told. A
 * filter on the socket keeps those from waking anybody.
 */
#define _GNU_SOURCE
#include "addresses.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/filter.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define REPLY_SIZE 32768

/*
 * zp_addresses_watch() - a descriptor that is readable when addresses have changed
 *
 * Of the network namespace of the calling thread. Return: 0 or -errno.
 */
int zp_addresses_watch(int *ret_fd)
{
	struct sockaddr_nl groups = {.nl_family = AF_NETLINK,
				     .nl_groups = RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR};
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_B | BPF_ABS,
			 NLMSG_HDRLEN + offsetof(struct ifaddrmsg, ifa_scope)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, RT_SCOPE_LINK, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, 0),
		BPF_STMT(BPF_RET | BPF_K, UINT32_MAX),
	};
	struct sock_fprog filter = {.len = sizeof(code) / sizeof(code[0]), .filter = code};
	int fd, r;

	fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_ROUTE);
	if (fd < 0)
		return -errno;
	if (setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof(filter)) < 0 ||
	    bind(fd, (struct sockaddr *)&groups, sizeof(groups)) < 0) {
		r = -errno;
		close(fd);
		return r;
	}
	*ret_fd = fd;
	return 0;
}

/* zp_addresses_drain() - what it says is forgotten: zp_addresses_read() asks anew. */
void zp_addresses_drain(int fd)
{
	char buffer[4096];
	ssize_t n;

	do
		n = recv(fd, buffer, sizeof(buffer), MSG_DONTWAIT);
	while (n >= 0 || errno == ENOBUFS || errno == EINTR);
}

static bool is_loopback(const uint8_t address[16])
{
	static const uint8_t mapped[13] = {[10] = 0xff, [11] = 0xff, [12] = 127};
	static const uint8_t one[16] = {[15] = 1};

	return memcmp(address, mapped, sizeof(mapped)) == 0 || memcmp(address, one, 16) == 0;
}

/* Return: whether there is one that counts. */
static bool address_of(const struct nlmsghdr *message, uint8_t address[16])
{
	const struct ifaddrmsg *found = NLMSG_DATA(message);
	const struct rtattr *attribute = IFA_RTA(found);
	int left = (int)IFA_PAYLOAD(message);
	const void *value = NULL;

	for (; RTA_OK(attribute, left); attribute = RTA_NEXT(attribute, left))
		if (attribute->rta_type == IFA_LOCAL || /* IFA_ADDRESS may be the far end's */
		    (attribute->rta_type == IFA_ADDRESS && !value))
			value = RTA_DATA(attribute);
	if (!value || found->ifa_scope == RT_SCOPE_LINK)
		return false;
	memset(address, 0, 16);
	if (found->ifa_family == AF_INET6) {
		memcpy(address, value, 16);
	} else {
		address[10] = address[11] = 0xff;
		memcpy(address + 12, value, 4);
	}
	return !is_loopback(address);
}

/* Return: 1 when more is to come, 0 at the end, -errno. */
static int read_reply(int fd, uint8_t (*addresses)[16], size_t room, size_t *count)
{
	char buffer[REPLY_SIZE] __attribute__((aligned(__alignof__(struct nlmsghdr))));
	const struct nlmsghdr *message = (const struct nlmsghdr *)buffer;
	ssize_t size = recv(fd, buffer, sizeof(buffer), 0);
	int left = (int)size;

	if (size < 0)
		return errno == EINTR ? 1 : -errno;
	for (; NLMSG_OK(message, (unsigned int)left); message = NLMSG_NEXT(message, left)) {
		if (message->nlmsg_type == NLMSG_DONE)
			return 0;
		if (message->nlmsg_type == NLMSG_ERROR)
			return -EPROTO;
		if (*count < room && message->nlmsg_type == RTM_NEWADDR &&
		    address_of(message, addresses[*count]))
			(*count)++;
	}
	return 1;
}

/*
 * zp_addresses_read() - those of the calling thread's network namespace
 * @addresses: IPv4 mapped into IPv6; what is more than @room is left out
 *
 * Return: 0 or -errno.
 */
int zp_addresses_read(uint8_t (*addresses)[16], size_t room, size_t *ret_count)
{
	struct {
		struct nlmsghdr header;
		struct ifaddrmsg request;
	} message = {
		.header = {.nlmsg_len = sizeof(message),
			   .nlmsg_type = RTM_GETADDR,
			   .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP},
		.request = {.ifa_family = AF_UNSPEC},
	};
	size_t count = 0;
	int fd, r;

	fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
	if (fd < 0)
		return -errno;
	r = send(fd, &message, sizeof(message), 0) < 0 ? -errno : 1;
	while (r > 0)
		r = read_reply(fd, addresses, room, &count);
	close(fd);
	if (r == 0)
		*ret_count = count;
	return r;
}
