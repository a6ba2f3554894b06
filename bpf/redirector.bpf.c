// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Holds those who open a connection to a sleeping app, and records when an app was last used.
 *
 * Both programs run on every interface of the pod, lo included. Asleep, what opens something to a
 * tracked port is parked (park.bpf.h), or its port is rewritten to the activator's, as the port's
 * mode says. A connection of the second kind is remembered; its later packets follow, and the
 * activator's answers get the app's port back on their way out, awake or asleep, until the
 * connection is opened anew. Anybody can send opening packets, so they are remembered in a map that
 * forgets the oldest; the activator moves what it has accepted into one that forgets nothing.
 * Awake, a packet is only looked at: its port's time of last activity is stamped, and it passes. A
 * bare ACK of a redirected connection is no activity: the activator's keepalives, of which the app
 * knows nothing, would keep it awake.
 *
 * What is put back carries a mark: on its way out it is turned round, on its way in it passes.
 *
 * On lo a packet meets the egress program first, then the ingress program. Ingress changes
 * destination ports only and egress source ports only, so none is changed twice.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "redirector.h"
#include "parse.bpf.h"
#include "icmp.bpf.h"
#include "park.bpf.h"

#define PASS -1 /* TCX_NEXT and TC_ACT_UNSPEC: the next program, if any, decides */
#define DROP 2	/* TCX_DROP and TC_ACT_SHOT */
#define LO   1	/* the kernel gives lo this index in every namespace */

#define ZP_AF_INET  2
#define ZP_AF_INET6 10

/* Tracked ports → their places in `ports`. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, ZP_MAX_PORTS);
	__type(key, struct zp_port_key);
	__type(value, __u32);
} places SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, ZP_MAX_PORTS);
	__type(key, __u32);
	__type(value, struct zp_port);
} ports SEC(".maps");

/* The activator's port → the app's. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, ZP_MAX_PORTS);
	__type(key, __be16);
	__type(value, __be16);
} listeners SEC(".maps");

/* Accepted connections. User space adds them, and removes those that have ended. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, ZP_MAX_FLOWS);
	__type(key, struct zp_flow);
	__type(value, struct zp_route);
} flows SEC(".maps");

/* Connections that are not accepted yet. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, ZP_MAX_OPENING);
	__type(key, struct zp_flow);
	__type(value, struct zp_route);
} opening SEC(".maps");

/* Addresses of the node, by which probes come. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, ZP_MAX_ADDRESSES);
	__type(key, __u8[16]);
	__type(value, __u8);
} node_addresses SEC(".maps");

/* Sources that wake nobody, and keep nobody awake. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, ZP_MAX_IGNORED);
	__type(key, struct zp_network);
	__type(value, __u8);
} ignored SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, ZP_COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

static __always_inline void count(__u32 which)
{
	__u64 *counter = bpf_map_lookup_elem(&counters, &which);

	if (counter)
		(*counter)++;
}

#include "quiet.bpf.h"

static __always_inline int is_ignored(const __u8 *address)
{
	struct zp_network network = {.bits = 128};

	if (!settings.any_ignored)
		return 0;
	__builtin_memcpy(network.address, address, 16);
	return bpf_map_lookup_elem(&ignored, &network) != NULL;
}

static __always_inline int is_of_node(const __u8 *address)
{
	return bpf_map_lookup_elem(&node_addresses, address) != NULL;
}

static __always_inline struct zp_port *find_port(__be16 port_be, __u8 protocol)
{
	struct zp_port_key key = {.port_be = port_be, .protocol = protocol};
	__u32 *place = bpf_map_lookup_elem(&places, &key);

	return place ? bpf_map_lookup_elem(&ports, place) : NULL;
}

static __always_inline int is_counted(struct __sk_buff *skb)
{
	return skb->ifindex != LO || settings.count_loopback;
}

static __always_inline void touch(struct zp_port *port, struct __sk_buff *skb, const __u8 *remote,
				  __be16 remote_port_be)
{
	if (!is_counted(skb))
		return;
	port->last_activity_ns = bpf_ktime_get_ns();
	__builtin_memcpy(__builtin_assume_aligned(port->remote, 8),
			 __builtin_assume_aligned(remote, 8), 16);
	port->remote_port_be = remote_port_be;
}

static __always_inline void touch_in(struct zp_port *port, struct __sk_buff *skb,
				     const struct packet *packet)
{
	touch(port, skb, packet->source, packet->source_be);
}

static __always_inline void touch_out(struct zp_port *port, struct __sk_buff *skb,
				      const struct packet *packet)
{
	touch(port, skb, packet->dest, packet->dest_be);
}

/*
 * Change the port at an offset and the checksum over it. A partial checksum has no ports in it and
 * stays as it is.
 */
static __always_inline int rewrite(struct __sk_buff *skb, __u32 check, __u32 at, __be16 before,
				   __be16 after)
{
	if (bpf_l4_csum_replace(skb, check, before, after, sizeof(after)) < 0 ||
	    bpf_skb_store_bytes(skb, at, &after, sizeof(after), 0) < 0) {
		count(ZP_COUNT_REWRITE_FAILED);
		return DROP;
	}
	return PASS;
}

static __always_inline int to_activator(struct __sk_buff *skb, struct packet *packet,
					__be16 activator_be)
{
	return rewrite(skb, packet->transport + ZP_TCP_CHECK, packet->transport + ZP_PORT_DEST,
		       packet->dest_be, activator_be);
}

static __always_inline void flow_of(struct zp_flow *flow, const struct packet *packet)
{
	__builtin_memcpy(flow->remote, packet->source, 16);
	__builtin_memcpy(flow->local, packet->dest, 16);
	flow->remote_port_be = packet->source_be;
	flow->local_port_be = packet->dest_be;
}

/* Whether a remembered connection is there: the kernel answers a SYN that claims to open it anew.
 */
static __always_inline int is_alive(struct __sk_buff *skb, const struct zp_flow *flow,
				    __be16 activator_be)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *found;
	__u32 size, state;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		__builtin_memcpy(&tuple.ipv4.saddr, flow->remote + 12, 4);
		__builtin_memcpy(&tuple.ipv4.daddr, flow->local + 12, 4);
		tuple.ipv4.sport = flow->remote_port_be;
		tuple.ipv4.dport = activator_be;
		size = sizeof(tuple.ipv4);
	} else {
		__builtin_memcpy(tuple.ipv6.saddr, flow->remote, 16);
		__builtin_memcpy(tuple.ipv6.daddr, flow->local, 16);
		tuple.ipv6.sport = flow->remote_port_be;
		tuple.ipv6.dport = activator_be;
		size = sizeof(tuple.ipv6);
	}
	found = bpf_skc_lookup_tcp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	if (!found)
		return 0;
	state = found->state;
	bpf_sk_release(found);
	return state == BPF_TCP_ESTABLISHED || state == BPF_TCP_FIN_WAIT1 ||
	       state == BPF_TCP_FIN_WAIT2 || state == BPF_TCP_CLOSE_WAIT;
}

static __always_inline struct zp_route *route_of(const struct zp_flow *flow)
{
	struct zp_route *route = bpf_map_lookup_elem(&flows, flow);

	return route ? route : bpf_map_lookup_elem(&opening, flow);
}

/* Whether it is for the pod itself. What the pod only forwards is nobody's that sleeps here. */
static __always_inline int is_local(struct __sk_buff *skb, const struct packet *packet)
{
	struct bpf_fib_lookup route = {.ifindex = skb->ifindex, .l4_protocol = packet->protocol};
	long r;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		route.family = ZP_AF_INET;
		__builtin_memcpy(&route.ipv4_src, packet->source + 12, 4);
		__builtin_memcpy(&route.ipv4_dst, packet->dest + 12, 4);
	} else {
		route.family = ZP_AF_INET6;
		__builtin_memcpy(route.ipv6_src, packet->source, 16);
		__builtin_memcpy(route.ipv6_dst, packet->dest, 16);
	}
	r = bpf_fib_lookup(skb, &route, sizeof(route), 0);
	return r == BPF_FIB_LKUP_RET_NOT_FWDED || r == BPF_FIB_LKUP_RET_FWD_DISABLED;
}

/*
 * A segment that anybody can have the app exchange with him, also under an address that is not his:
 * a SYN, the answer to one, and a reset. An awake app is not in use for them.
 */
static __always_inline int is_bare(const struct packet *packet)
{
	return packet->protocol == IPPROTO_TCP && packet->flags & (ZP_FLAG_SYN | ZP_FLAG_RST);
}

static __always_inline int hold(struct __sk_buff *skb, const struct packet *packet,
				struct zp_port *port, const struct zp_flow *flow, __be32 isn_be)
{
	int r = park(skb, packet, flow, isn_be, ZP_RECORD_PARKED);

	count(r < 0 ? ZP_COUNT_PARKED_FULL : ZP_COUNT_PARKED);
	touch_in(port, skb, packet);
	return DROP;
}

static __always_inline int open_flow(struct __sk_buff *skb, struct packet *packet,
				     struct zp_port *port, const struct zp_flow *flow)
{
	struct zp_route *known = route_of(flow);
	struct zp_route route = {};

	if (bpf_skb_load_bytes(skb, packet->transport + ZP_TCP_SEQUENCE, &route.isn_be, 4) < 0) {
		count(ZP_COUNT_MALFORMED);
		return PASS;
	}
	if (known && known->isn_be == route.isn_be) {
		count(ZP_COUNT_FLOW_IN);
		return to_activator(skb, packet, known->activator_port_be);
	}
	if (known && is_alive(skb, flow, known->activator_port_be)) {
		count(ZP_COUNT_FLOW_IN);
		return to_activator(skb, packet, known->activator_port_be);
	}
	if (known) {
		bpf_map_delete_elem(&flows, flow);
		bpf_map_delete_elem(&opening, flow);
		count(ZP_COUNT_FLOW_FORGOTTEN);
	}
	if (port->mode == ZP_MODE_PASS) {
		if ((!port->probes || !is_of_node(packet->source) || !quiet_open(flow)) &&
		    is_counted(skb))
			port->last_opening_ns = bpf_ktime_get_ns();
		return PASS;
	}
	if (!is_local(skb, packet)) {
		count(ZP_COUNT_FORWARDED);
		return PASS;
	}
	if (port->mode == ZP_MODE_PARK_ALL ||
	    (port->mode == ZP_MODE_PARK && !is_of_node(packet->source)))
		return hold(skb, packet, port, flow, route.isn_be);
	route.activator_port_be = port->activator_port_be;
	if (port->full || bpf_map_update_elem(&opening, flow, &route, BPF_ANY) < 0) {
		count(ZP_COUNT_FLOWS_FULL);
		return DROP; /* its retransmission finds room, or the app */
	}
	count(ZP_COUNT_REDIRECTED);
	return to_activator(skb, packet, route.activator_port_be);
}

static __always_inline int pass_error(struct __sk_buff *skb, const struct packet *packet)
{
	struct zp_flow flow = {};
	struct zp_route *route;
	__u32 quoted;

	quoted = parse_error(skb, packet, &flow);
	if (!quoted)
		return PASS;
	route = route_of(&flow);
	if (!route)
		return PASS;
	count(ZP_COUNT_ERROR_IN);
	return rewrite(skb, packet->transport + ZP_ICMP_CHECK, quoted + ZP_PORT_SOURCE,
		       flow.local_port_be, route->activator_port_be);
}

SEC("tc")
int zp_ingress(struct __sk_buff *skb)
{
	struct packet packet = {};
	struct zp_flow flow = {};
	struct zp_route *route;
	struct zp_port *port;
	int r;

	if (skb->pkt_type != PACKET_HOST)
		return PASS;
	r = parse(skb, &packet);
	if (r == 0)
		return pass_error(skb, &packet);
	if (r < 0) {
		count(-r);
		return PASS;
	}
	port = find_port(packet.dest_be, packet.protocol);
	if (!port) {
		if (packet.protocol != IPPROTO_TCP ||
		    !bpf_map_lookup_elem(&listeners, &packet.dest_be))
			return PASS;
		count(ZP_COUNT_DIRECT_DROPPED);
		return DROP;
	}
	if (skb->mark == ZP_MARK)
		return PASS;
	if (skb->mark == ZP_MARK_BACK) {
		skb->mark = 0;
		touch_in(port, skb, &packet);
		return PASS;
	}
	if (is_ignored(packet.source)) {
		if (port->mode == ZP_MODE_PASS)
			return PASS;
		if (packet.protocol == IPPROTO_UDP || packet.flags & ZP_FLAG_SYN)
			count(ZP_COUNT_IGNORED);
		return packet.protocol == IPPROTO_UDP ? DROP : PASS;
	}
	flow_of(&flow, &packet);
	if (packet.protocol == IPPROTO_UDP) {
		if (port->mode != ZP_MODE_PASS && is_local(skb, &packet))
			return hold(skb, &packet, port, &flow, 0);
		touch_in(port, skb, &packet);
		return PASS;
	}
	if ((packet.flags & (ZP_FLAG_SYN | ZP_FLAG_ACK)) == ZP_FLAG_SYN)
		return open_flow(skb, &packet, port, &flow);
	route = route_of(&flow);
	if (!route) {
		if ((!port->probes || !is_of_node(packet.source) ||
		     !quiet_in(skb, &packet, port, &flow)) &&
		    !is_bare(&packet))
			touch_in(port, skb, &packet);
		return PASS;
	}
	if (!is_bare_ack(skb, &packet))
		touch_in(port, skb, &packet);
	count(ZP_COUNT_FLOW_IN);
	return to_activator(skb, &packet, route->activator_port_be);
}

SEC("tc")
int zp_egress(struct __sk_buff *skb)
{
	struct packet packet = {};
	struct zp_port *port;
	__be16 *app_be;
	int r;

	if (skb->mark == ZP_MARK_BACK && skb->ifindex != LO)
		return bpf_redirect(skb->ifindex, BPF_F_INGRESS);
	r = parse(skb, &packet);
	if (r <= 0) {
		if (r < 0)
			count(-r);
		return PASS;
	}
	port = find_port(packet.source_be, packet.protocol);
	if (port) {
		if (is_ignored(packet.dest) ||
		    (port->probes && is_of_node(packet.dest) && quiet_out(&packet)) ||
		    is_bare(&packet))
			return PASS;
		touch_out(port, skb, &packet);
		return PASS;
	}
	if (packet.protocol != IPPROTO_TCP)
		return PASS;
	app_be = bpf_map_lookup_elem(&listeners, &packet.source_be);
	if (!app_be)
		return PASS;
	port = find_port(*app_be, IPPROTO_TCP);
	if (port && !is_bare_ack(skb, &packet))
		touch_out(port, skb, &packet);
	count(ZP_COUNT_FLOW_OUT);
	return rewrite(skb, packet.transport + ZP_TCP_CHECK, packet.transport + ZP_PORT_SOURCE,
		       packet.source_be, *app_be);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
