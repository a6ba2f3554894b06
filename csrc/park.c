// SPDX-License-Identifier: Apache-2.0
/*
 * What opens a connection to a sleeping app is dropped by the BPF programs, and a copy of it comes
 * here. It is put back when the app listens: its own kernel side then completes the handshake with
 * the client itself.
 *
 * By which way it is put back depends on where it came from. A packet socket sends the frame on its
 * interface, where the egress program sees the mark and turns it round. On lo a raw IP socket does,
 * for the kernel would take an IPv4 address of 127/8 for forged on the other way.
 *
 * A sender on the same machine leaves the checksum to its device, which there is none of: it has
 * the sum of the pseudo header in it, and is finished here. Any other wrong checksum stays wrong.
 */
#define _GNU_SOURCE
#include "park.h"

#include <fcntl.h>
#include <linux/if_packet.h>
#include <linux/virtio_net.h>
#include <net/ethernet.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/ip6.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "grpc.h"
#include "internal.h"
#include "netns.h"
#include "probe.h"

#define LO	      1
#define GSO_UDP_L4    5 /* VIRTIO_NET_HDR_GSO_UDP_L4, which the headers may be too old for */
#define TCP_OFFSET    12
#define TCP_CHECK     16
#define UDP_CHECK     6
#define SNMP_SIZE     4096
#define PASSIVE_OPENS 6 /* its place in the lines "Tcp:" */

void zp_park_init(struct zp_park *park)
{
	*park = (struct zp_park){
		.packet_fd = -EBADF, .raw_fd = -EBADF, .raw6_fd = -EBADF, .snmp_fd = -EBADF};
	TAILQ_INIT(&park->frames);
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -EBADF;
}

static void frame_free(struct zp_park *park, struct zp_frame *frame)
{
	TAILQ_REMOVE(&park->frames, frame, link);
	park->count--;
	park->bytes -= frame->head.length;
	free(frame);
}

/* zp_park_deinit() - forget what is left. */
void zp_park_deinit(struct zp_park *park)
{
	struct zp_frame *frame;

	while ((frame = TAILQ_FIRST(&park->frames)))
		frame_free(park, frame);
	close_fd(&park->packet_fd);
	close_fd(&park->raw_fd);
	close_fd(&park->raw6_fd);
	close_fd(&park->snmp_fd);
}

static uint32_t add_up(const uint8_t *bytes, size_t size, uint32_t sum)
{
	size_t i;

	for (i = 0; i + 1 < size; i += 2)
		sum += (uint32_t)(bytes[i] << 8 | bytes[i + 1]);
	if (size % 2)
		sum += (uint32_t)(bytes[size - 1] << 8);
	return sum;
}

static uint16_t fold(uint32_t sum)
{
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)sum;
}

static bool is_v4(const struct zp_parked *parked)
{
	return parked->frame[parked->network] >> 4 == 4;
}

/* The offset behind the packet, of which the frame may hold less. */
static uint32_t whole_end(const struct zp_parked *parked)
{
	const uint8_t *ip = parked->frame + parked->network;

	return parked->network +
	       (is_v4(parked) ? (uint32_t)(ip[2] << 8 | ip[3])
			      : (uint32_t)(ip[4] << 8 | ip[5]) + sizeof(struct ip6_hdr));
}

/* The offset behind what there is of it; what follows is padding. */
static uint32_t end_of(const struct zp_parked *parked)
{
	uint32_t end = whole_end(parked);

	return end > parked->length ? parked->length : end;
}

/* zp_park_finish_checksum() - if its sender has left that to a device */
void zp_park_finish_checksum(struct zp_parked *parked)
{
	size_t at = parked->protocol == IPPROTO_TCP ? TCP_CHECK : UDP_CHECK;
	uint8_t *segment = parked->frame + parked->transport;
	uint32_t size = end_of(parked) - parked->transport, sum;
	size_t skip = is_v4(parked) ? 12 : 0; /* of a mapped address */
	uint16_t noted;

	if (parked->gso_size || at + 2 > size)
		return;
	noted = (uint16_t)(segment[at] << 8 | segment[at + 1]);
	if (noted == 0 && parked->protocol == IPPROTO_UDP)
		return; /* it has none */
	sum = add_up(parked->flow.remote + skip, 16 - skip, parked->protocol + size);
	sum = add_up(parked->flow.local + skip, 16 - skip, sum);
	if (noted != fold(sum))
		return;
	segment[at] = segment[at + 1] = 0;
	noted = (uint16_t)~fold(add_up(segment, size, sum));
	if (noted == 0 && parked->protocol == IPPROTO_UDP)
		noted = 0xffff;
	segment[at] = (uint8_t)(noted >> 8);
	segment[at + 1] = (uint8_t)noted;
}

/* A socket by which packets are put back, made at its first use. Return: it, or -errno. */
static int back_socket(struct zp_activator *activator, int *fd, int family, int protocol)
{
	uint32_t mark = ZP_MARK_BACK;
	int one = 1, r;

	if (*fd >= 0)
		return *fd;
	r = zp_netns_socket(activator->netns_fd, family, SOCK_RAW | SOCK_NONBLOCK, protocol, fd);
	if (r < 0)
		return r;
	r = setsockopt(*fd, SOL_SOCKET, SO_MARK, &mark, sizeof(mark));
	if (r == 0 && family == AF_PACKET)
		r = setsockopt(*fd, SOL_PACKET, PACKET_VNET_HDR, &one, sizeof(one));
	if (r == 0 && family == AF_INET6)
		r = setsockopt(*fd, IPPROTO_IPV6, IPV6_HDRINCL, &one, sizeof(one));
	if (r < 0) {
		r = -errno;
		close_fd(fd);
		return r;
	}
	return *fd;
}

static ssize_t return_by_lo(struct zp_activator *activator, const struct zp_parked *parked)
{
	const void *packet = parked->frame + parked->network;
	size_t size = parked->length - parked->network;
	struct sockaddr_in6 to6 = {.sin6_family = AF_INET6};
	struct sockaddr_in to = {.sin_family = AF_INET};
	int fd;

	if (is_v4(parked)) {
		fd = back_socket(activator, &activator->park.raw_fd, AF_INET, IPPROTO_RAW);
		memcpy(&to.sin_addr, parked->flow.local + 12, 4);
		return fd < 0 ? fd : sendto(fd, packet, size, 0, (void *)&to, sizeof(to));
	}
	fd = back_socket(activator, &activator->park.raw6_fd, AF_INET6, IPPROTO_RAW);
	memcpy(&to6.sin6_addr, parked->flow.local, 16);
	return fd < 0 ? fd : sendto(fd, packet, size, 0, (void *)&to6, sizeof(to6));
}

static ssize_t return_by_interface(struct zp_activator *activator, struct zp_parked *parked)
{
	struct virtio_net_hdr offload = {.gso_type = VIRTIO_NET_HDR_GSO_NONE};
	struct iovec parts[] = {{&offload, sizeof(offload)}, {parked->frame, parked->length}};
	struct sockaddr_ll to = {.sll_family = AF_PACKET,
				 .sll_protocol =
					 htons(is_v4(parked) ? ETHERTYPE_IP : ETHERTYPE_IPV6),
				 .sll_ifindex = (int)parked->ifindex};
	struct msghdr message = {
		.msg_name = &to, .msg_namelen = sizeof(to), .msg_iov = parts, .msg_iovlen = 2};
	int fd = back_socket(activator, &activator->park.packet_fd, AF_PACKET, 0);

	if (fd < 0)
		return fd;
	if (parked->gso_size) {
		offload.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
		offload.gso_type = GSO_UDP_L4;
		offload.gso_size = parked->gso_size;
		offload.hdr_len = (uint16_t)(parked->transport + 8);
		offload.csum_start = (uint16_t)parked->transport;
		offload.csum_offset = UDP_CHECK;
	}
	return sendmsg(fd, &message, 0);
}

/* What cannot be put back is lost, as on a wire; its sender sends it again. */
static void frame_return(struct zp_activator *activator, struct zp_frame *frame)
{
	zp_park_finish_checksum(&frame->head);
	if (frame->head.ifindex == LO)
		return_by_lo(activator, &frame->head);
	else
		return_by_interface(activator, &frame->head);
	frame_free(&activator->park, frame);
}

static struct zp_port_entry *port_of(struct zp_activator *activator, const struct zp_parked *parked)
{
	uint16_t number = ntohs(parked->flow.local_port_be);
	struct zp_group *group;
	size_t port;
	int i;

	for (i = 0; i < ZP_MAX_GROUPS; i++) {
		group = activator->groups[i];
		for (port = 0; group && !group->removed && port < group->port_count; port++)
			if (group->ports[port].port == number &&
			    group->ports[port].protocol == parked->protocol)
				return &group->ports[port];
	}
	return NULL;
}

/* A SYN that is here already: sent again, for its answer took long. */
static bool is_here(const struct zp_park *park, const struct zp_parked *parked)
{
	struct zp_frame *frame;

	if (parked->protocol != IPPROTO_TCP)
		return false;
	TAILQ_FOREACH(frame, &park->frames, link)
	if (frame->head.isn_be == parked->isn_be &&
	    memcmp(&frame->head.flow, &parked->flow, sizeof(parked->flow)) == 0)
		return true;
	return false;
}

/*
 * What a segment of a connection from the node to the awake app tells.
 * @ret_waits: it is of HTTP/2, whole, and has no call in it
 * @ret_unread: why nothing can be told
 */
static enum zp_verdict verdict_of(const struct zp_parked *parked, size_t limit, bool *ret_waits,
				  enum zp_unread *ret_unread)
{
	uint32_t end = end_of(parked), data = parked->transport;
	const char *bytes = (const char *)parked->frame;
	struct zp_grpc grpc = {0};
	enum zp_verdict verdict;
	bool begins = false; /* a kubelet sends the preface by itself */

	if (data + TCP_OFFSET < parked->length)
		data += (uint32_t)(parked->frame[data + TCP_OFFSET] >> 4) * 4;
	if (data >= end)
		return ZP_PROBE_NO;
	bytes += data;
	if (end - data < limit)
		limit = end - data;
	if (zp_probe_is_tls(bytes, limit))
		*ret_unread = ZP_UNREAD_TLS;
	if (parked->kind == ZP_RECORD_ASKED_ON) {
		verdict = zp_grpc_go_on(bytes, limit, &grpc);
	} else if (zp_h2_begins(bytes, limit)) {
		verdict = zp_grpc_classify(bytes, limit, &grpc);
		begins = limit == ZP_H2_PREFACE;
	} else {
		return zp_probe_classify(bytes, limit, limit);
	}
	if (verdict == ZP_PROBE_MORE)
		*ret_unread = ZP_UNREAD_HTTP2;
	*ret_waits = (grpc.waits || begins) && data + limit == whole_end(parked);
	return verdict;
}

/* Whether it is a later segment of what was found to be a probe, which may have ended by now. */
static bool is_of_probe(struct zp_activator *activator, const struct zp_parked *parked)
{
	struct zp_park *park = &activator->park;
	bool same = memcmp(&park->probe, &parked->flow, sizeof(parked->flow)) == 0;

	if (parked->kind == ZP_RECORD_ASKED_ON)
		return same || zp_redirector_is_settled(&activator->redirector, &parked->flow);
	if (same) /* the same ports once more */
		memset(&park->probe, 0, sizeof(park->probe));
	return false;
}

/*
 * A segment of such a connection: a probe's? Else it counts, but for one of HTTP/2 without a call
 * in it, of which the next one tells. A frame that lies in two segments cannot be read.
 */
static void decide(struct zp_activator *activator, struct zp_port_entry *port,
		   const struct zp_parked *parked)
{
	struct zp_redirector *redirector = &activator->redirector;
	struct zp_group *group = port->group;
	enum zp_unread unread = ZP_UNREAD_NO;
	enum zp_verdict verdict;
	bool waits = false;

	if (is_of_probe(activator, parked))
		return;
	verdict = verdict_of(parked, group->options.probe_buffer_size, &waits, &unread);
	if (verdict == ZP_PROBE_YES) {
		group->stats.probes_awake++;
		activator->park.probe = parked->flow;
		zp_redirector_settle_flow(redirector, &parked->flow);
	} else if (!waits) {
		group->unread_flow = parked->flow;
		group->unread = unread;
		zp_redirector_count_flow(redirector, &parked->flow);
		memcpy(port->shared->remote, parked->flow.remote, sizeof(port->shared->remote));
		port->shared->remote_port_be = parked->flow.remote_port_be;
		__atomic_store_n(&port->shared->last_activity_ns, zp_now_ns(), __ATOMIC_RELAXED);
	}
}

/*
 * zp_park_note() - a record of the ring: answer it, or keep it and say so to its group
 *
 * What is too much is dropped, like what found no room in the ring. Return: 0.
 */
int zp_park_note(struct zp_activator *activator, const struct zp_parked *parked, size_t size)
{
	struct zp_park *park = &activator->park;
	struct zp_port_entry *port = port_of(activator, parked);
	struct zp_frame *frame;

	if (size < sizeof(*parked) || parked->length > size - sizeof(*parked) ||
	    parked->transport >= parked->length || !port)
		return 0;
	if (parked->kind != ZP_RECORD_PARKED) {
		decide(activator, port, parked);
		return 0;
	}
	if (park->count >= ZP_MAX_PARKED || park->bytes + parked->length > ZP_MAX_PARKED_BYTES ||
	    is_here(park, parked))
		return 0;
	frame = malloc(sizeof(*frame) + parked->length);
	if (!frame)
		return 0;
	memcpy(&frame->head, parked, sizeof(*parked) + parked->length);
	frame->port = port;
	TAILQ_INSERT_TAIL(&park->frames, frame, link);
	park->count++;
	park->bytes += parked->length;
	zp_group_parked(port->group);
	return 0;
}

/* zp_park_count() - how many are held for a port. */
size_t zp_park_count(struct zp_activator *activator, const struct zp_port_entry *port)
{
	struct zp_frame *frame;
	size_t count = 0;

	TAILQ_FOREACH(frame, &activator->park.frames, link)
	count += frame->port == port;
	return count;
}

/* zp_park_return() - put back up to @room of a port, in their order. Return: how many. */
size_t zp_park_return(struct zp_activator *activator, const struct zp_port_entry *port, size_t room)
{
	struct zp_frame *frame, *next;
	size_t count = 0;

	for (frame = TAILQ_FIRST(&activator->park.frames); frame && count < room; frame = next) {
		next = TAILQ_NEXT(frame, link);
		if (frame->port != port)
			continue;
		frame_return(activator, frame);
		count++;
	}
	return count;
}

static int open_snmp(struct zp_activator *activator)
{
	struct zp_netns ns = ZP_NETNS_NONE;
	int fd, r;

	if (activator->park.snmp_fd >= 0)
		return 0;
	r = zp_netns_enter(&ns, activator->netns_fd);
	if (r < 0)
		return r;
	fd = open("/proc/thread-self/net/snmp", O_RDONLY | O_CLOEXEC);
	r = fd < 0 ? -errno : 0;
	zp_netns_leave(&ns);
	if (r == 0)
		activator->park.snmp_fd = fd;
	return r;
}

/* zp_park_passive_opens() - handshakes that clients of the pod have completed. Return: 0, -errno.
 */
int zp_park_passive_opens(struct zp_activator *activator, uint64_t *ret_opens)
{
	char text[SNMP_SIZE], *line, *word, *rest = NULL;
	ssize_t size;
	int i, r = open_snmp(activator);

	if (r < 0)
		return r;
	size = pread(activator->park.snmp_fd, text, sizeof(text) - 1, 0);
	if (size < 0)
		return -errno;
	text[size] = '\0';
	line = strstr(text, "\nTcp: ");
	line = line ? strstr(line + 1, "\nTcp: ") : NULL; /* behind that of the names */
	if (!line)
		return -EPROTO;
	word = strtok_r(line + 1, " \n", &rest);
	for (i = 0; word && i < PASSIVE_OPENS; i++)
		word = strtok_r(NULL, " \n", &rest);
	if (!word)
		return -EPROTO;
	*ret_opens = strtoull(word, NULL, 10);
	return 0;
}
