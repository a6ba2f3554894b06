/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Errors about packets that the pod has sent: too big for some link, say.
 *
 * They quote the packet as it left, with the app's port. The one who sent it may have been the
 * activator: its kernel side looks for the connection under the activator's port, and would go on
 * to send what never arrives.
 */
#ifndef ZP_ICMP_BPF_H
#define ZP_ICMP_BPF_H

#define ZP_ICMP_SIZE	    8
#define ZP_ICMP_CHECK	    2
#define ZP_ICMP_UNREACHABLE 3
#define ZP_ICMP_EXCEEDED    11
#define ZP_ICMP_PARAMETER   12
#define ZP_ICMP6_FIRST_INFO 128 /* the types below it are errors */

static __always_inline int is_error(__u8 protocol, __u8 type)
{
	if (protocol == IPPROTO_ICMPV6)
		return type < ZP_ICMP6_FIRST_INFO;
	return type == ZP_ICMP_UNREACHABLE || type == ZP_ICMP_EXCEEDED || type == ZP_ICMP_PARAMETER;
}

/* Return: the offset of the quoted packet's TCP header, with its addresses in @flow; 0: no TCP. */
static __always_inline __u32 parse_quote(struct __sk_buff *skb, __u8 protocol, __u32 quote,
					 struct zp_flow *flow)
{
	union {
		struct iphdr v4;
		struct ipv6hdr v6;
	} ip;

	if (protocol == IPPROTO_ICMPV6) {
		if (bpf_skb_load_bytes(skb, quote, &ip.v6, sizeof(ip.v6)) < 0 ||
		    ip.v6.version != 6 || ip.v6.nexthdr != IPPROTO_TCP)
			return 0;
		__builtin_memcpy(flow->local, &ip.v6.saddr, 16);
		__builtin_memcpy(flow->remote, &ip.v6.daddr, 16);
		return quote + sizeof(ip.v6);
	}
	if (bpf_skb_load_bytes(skb, quote, &ip.v4, sizeof(ip.v4)) < 0 || ip.v4.version != 4 ||
	    ip.v4.ihl < 5 || ip.v4.protocol != IPPROTO_TCP ||
	    ip.v4.frag_off & bpf_htons(ZP_IP_OFFSET))
		return 0;
	map_v4(flow->local, ip.v4.saddr);
	map_v4(flow->remote, ip.v4.daddr);
	return quote + ip.v4.ihl * 4;
}

/* Return: the offset of the quoted packet's ports, and whose it was; 0 for anything else. */
static __always_inline __u32 parse_error(struct __sk_buff *skb, const struct packet *packet,
					 struct zp_flow *flow)
{
	__be16 ports[2];
	__u32 quoted;
	__u8 type;

	if (packet->protocol != IPPROTO_ICMP && packet->protocol != IPPROTO_ICMPV6)
		return 0;
	if (bpf_skb_load_bytes(skb, packet->transport, &type, sizeof(type)) < 0 ||
	    !is_error(packet->protocol, type))
		return 0;
	quoted = parse_quote(skb, packet->protocol, packet->transport + ZP_ICMP_SIZE, flow);
	if (!quoted || bpf_skb_load_bytes(skb, quoted, ports, sizeof(ports)) < 0)
		return 0;
	flow->local_port_be = ports[0];
	flow->remote_port_be = ports[1];
	return quoted;
}

#endif
