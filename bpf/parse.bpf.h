/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * From a frame to its ports: TCP and UDP over IPv4 with options and IPv6 with extension headers.
 *
 * What is not wholly understood is passed on as it is: the kernel decides about it. Of a datagram
 * in fragments the first one has the ports, and is treated as if it were whole; the kernel puts the
 * others to it. A frame with a VLAN tag belongs to the VLAN's own device, where the programs see it
 * again without.
 */
#ifndef ZP_PARSE_BPF_H
#define ZP_PARSE_BPF_H

#define ZP_MAX_EXTENSIONS 6
#define ZP_PORT_SOURCE	  0 /* of a TCP or UDP header */
#define ZP_PORT_DEST	  2
#define ZP_TCP_SEQUENCE	  4
#define ZP_TCP_OFFSET	  12
#define ZP_TCP_FLAGS	  13
#define ZP_TCP_CHECK	  16
#define ZP_TCP_SIZE	  20
#define ZP_UDP_SIZE	  8
#define ZP_FLAG_SYN	  0x02
#define ZP_FLAG_RST	  0x04
#define ZP_FLAG_ACK	  0x10
#define ZP_IP_OFFSET	  0x1fff
#define ZP_IP6_OFFSET	  0xfff8
#define ZP_VLAN_ID	  0x0fff
#define ZP_MOBILITY	  135
#define ZP_HIP		  139
#define ZP_SHIM6	  140

const volatile struct zp_settings settings;

struct packet {
	__u8 source[16] __attribute__((aligned(8))); /* copied in two words */
	__u8 dest[16] __attribute__((aligned(8)));
	__be16 source_be;
	__be16 dest_be;
	__u32 transport; /* offset of the TCP or UDP header */
	__u32 end;	 /* offset of what is behind the packet: nothing, or padding */
	__u8 protocol;
	__u8 flags; /* of TCP */
};

static __always_inline void map_v4(__u8 *mapped, __be32 address)
{
	__builtin_memset(mapped, 0, 10);
	mapped[10] = mapped[11] = 0xff;
	__builtin_memcpy(mapped + 12, &address, 4);
}

static __always_inline __u32 link_header(const struct __sk_buff *skb)
{
	int i;

	for (i = 0; i < ZP_MAX_BARE && settings.bare_interfaces[i]; i++)
		if (skb->ifindex == settings.bare_interfaces[i])
			return 0;
	return ETH_HLEN;
}

static __always_inline int parse_transport(struct __sk_buff *skb, struct packet *packet)
{
	__u8 tcp[ZP_TCP_SIZE];

	if (packet->protocol == IPPROTO_UDP) {
		if (packet->transport + ZP_UDP_SIZE > packet->end ||
		    bpf_skb_load_bytes(skb, packet->transport, tcp, 4) < 0)
			return -ZP_COUNT_MALFORMED;
	} else {
		if (packet->transport + ZP_TCP_SIZE > packet->end ||
		    bpf_skb_load_bytes(skb, packet->transport, tcp, ZP_TCP_FLAGS + 1) < 0 ||
		    tcp[ZP_TCP_OFFSET] >> 4 < ZP_TCP_SIZE / 4)
			return -ZP_COUNT_MALFORMED;
		packet->flags = tcp[ZP_TCP_FLAGS];
	}
	__builtin_memcpy(&packet->source_be, tcp + ZP_PORT_SOURCE, 2);
	__builtin_memcpy(&packet->dest_be, tcp + ZP_PORT_DEST, 2);
	return 1;
}

static __always_inline int parse_v4(struct __sk_buff *skb, __u32 start, struct packet *packet)
{
	struct iphdr ip;
	__u32 size;

	if (bpf_skb_load_bytes(skb, start, &ip, sizeof(ip)) < 0 || ip.version != 4 || ip.ihl < 5)
		return -ZP_COUNT_MALFORMED;
	packet->protocol = ip.protocol;
	packet->transport = start + ip.ihl * 4;
	if (ip.protocol != IPPROTO_TCP && ip.protocol != IPPROTO_UDP)
		return 0;
	if (ip.frag_off & bpf_htons(ZP_IP_OFFSET))
		return -ZP_COUNT_FRAGMENT;
	size = bpf_ntohs(ip.tot_len);
	packet->end = size ? start + size : skb->len; /* 0: more than fits into the field */
	if (packet->end > skb->len)
		return -ZP_COUNT_MALFORMED;
	map_v4(packet->source, ip.saddr);
	map_v4(packet->dest, ip.daddr);
	return parse_transport(skb, packet);
}

/* Return: 1 for a header to be followed, 0 for the last one, minus the counter. */
static __always_inline int follow(struct __sk_buff *skb, struct packet *packet, __u8 *next)
{
	__u8 header[4];

	switch (*next) {
	case IPPROTO_HOPOPTS:
	case IPPROTO_ROUTING:
	case IPPROTO_FRAGMENT:
	case IPPROTO_DSTOPTS:
	case IPPROTO_AH:
		break;
	case ZP_MOBILITY:
	case ZP_HIP:
	case ZP_SHIM6:
		return -ZP_COUNT_UNKNOWN_HEADER;
	default:
		return 0;
	}
	if (bpf_skb_load_bytes(skb, packet->transport, header, sizeof(header)) < 0)
		return -ZP_COUNT_MALFORMED;
	/* Its length is in units of 8 bytes without the first; of 4 bytes without two for AH. */
	if (*next == IPPROTO_FRAGMENT) {
		if ((header[2] << 8 | header[3]) & ZP_IP6_OFFSET)
			return -ZP_COUNT_FRAGMENT;
		packet->transport += 8;
	} else if (*next == IPPROTO_AH) {
		packet->transport += (header[1] + 2) * 4;
	} else if (*next == IPPROTO_ROUTING && header[3]) {
		return -ZP_COUNT_UNKNOWN_HEADER; /* on its way to somewhere else */
	} else {
		packet->transport += (header[1] + 1) * 8;
	}
	*next = header[0];
	return 1;
}

static __always_inline int parse_v6(struct __sk_buff *skb, __u32 start, struct packet *packet)
{
	struct ipv6hdr ip;
	int i, r = 1;
	__u32 size;
	__u8 next;

	if (bpf_skb_load_bytes(skb, start, &ip, sizeof(ip)) < 0 || ip.version != 6)
		return -ZP_COUNT_MALFORMED;
	size = bpf_ntohs(ip.payload_len);
	packet->end = size ? start + sizeof(ip) + size : skb->len;
	if (packet->end > skb->len)
		return -ZP_COUNT_MALFORMED;
	packet->transport = start + sizeof(ip);
	next = ip.nexthdr;
	for (i = 0; i <= ZP_MAX_EXTENSIONS && r > 0; i++)
		r = follow(skb, packet, &next);
	if (r)
		return r < 0 ? r : -ZP_COUNT_UNKNOWN_HEADER;
	packet->protocol = next;
	if (next != IPPROTO_TCP && next != IPPROTO_UDP)
		return 0;
	__builtin_memcpy(packet->source, &ip.saddr, 16);
	__builtin_memcpy(packet->dest, &ip.daddr, 16);
	return parse_transport(skb, packet);
}

/*
 * An ACK and nothing else: a keepalive, the answer to one, or the receipt of what went the other
 * way.
 */
static __always_inline int is_bare_ack(struct __sk_buff *skb, const struct packet *packet)
{
	__u8 words;

	if (packet->flags != ZP_FLAG_ACK ||
	    bpf_skb_load_bytes(skb, packet->transport + ZP_TCP_OFFSET, &words, 1) < 0)
		return 0;
	return packet->end <= packet->transport + (words >> 4) * 4;
}

/*
 * Return: 1 for TCP and UDP, 0 for what is neither, minus the counter of an unusual exit. Of what
 * is neither the protocol and its header's offset are set, where it is IP.
 */
static __always_inline int parse(struct __sk_buff *skb, struct packet *packet)
{
	if (skb->vlan_present && skb->vlan_tci & ZP_VLAN_ID)
		return -ZP_COUNT_VLAN;
	if (skb->protocol == bpf_htons(ETH_P_IP))
		return parse_v4(skb, link_header(skb), packet);
	if (skb->protocol == bpf_htons(ETH_P_IPV6))
		return parse_v6(skb, link_header(skb), packet);
	if (skb->protocol == bpf_htons(ETH_P_8021Q) || skb->protocol == bpf_htons(ETH_P_8021AD))
		return -ZP_COUNT_VLAN;
	return 0;
}

#endif
