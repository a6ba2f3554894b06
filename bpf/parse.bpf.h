/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* From a frame to its TCP ports: IPv4 with options, IPv6 with the usual extension headers. */
#ifndef ZP_PARSE_BPF_H
#define ZP_PARSE_BPF_H

#define ZP_MAX_EXTENSIONS 6
#define ZP_TCP_SOURCE	  0
#define ZP_TCP_DEST	  2
#define ZP_TCP_SEQUENCE	  4
#define ZP_TCP_OFFSET	  12
#define ZP_TCP_FLAGS	  13
#define ZP_TCP_CHECK	  16
#define ZP_FLAG_SYN	  0x02
#define ZP_FLAG_ACK	  0x10

struct packet {
	__u8 source[16];
	__u8 dest[16];
	__be16 source_be;
	__be16 dest_be;
	__u32 tcp; /* offset of the TCP header */
	__u8 flags;
};

static __always_inline void map_v4(__u8 *mapped, __be32 address)
{
	__builtin_memset(mapped, 0, 10);
	mapped[10] = mapped[11] = 0xff;
	__builtin_memcpy(mapped + 12, &address, 4);
}

static __always_inline int parse_tcp(struct __sk_buff *skb, struct packet *packet)
{
	if (bpf_skb_load_bytes(skb, packet->tcp + ZP_TCP_SOURCE, &packet->source_be, 2) < 0 ||
	    bpf_skb_load_bytes(skb, packet->tcp + ZP_TCP_DEST, &packet->dest_be, 2) < 0 ||
	    bpf_skb_load_bytes(skb, packet->tcp + ZP_TCP_FLAGS, &packet->flags, 1) < 0)
		return -ZP_COUNT_MALFORMED;
	return 1;
}

static __always_inline int parse_v4(struct __sk_buff *skb, struct packet *packet)
{
	struct iphdr ip;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)) < 0 || ip.ihl < 5)
		return -ZP_COUNT_MALFORMED;
	if (ip.protocol != IPPROTO_TCP)
		return 0;
	if (ip.frag_off & bpf_htons(0x3fff))
		return -ZP_COUNT_FRAGMENT;
	map_v4(packet->source, ip.saddr);
	map_v4(packet->dest, ip.daddr);
	packet->tcp = ETH_HLEN + ip.ihl * 4;
	return parse_tcp(skb, packet);
}

static __always_inline int parse_v6(struct __sk_buff *skb, struct packet *packet)
{
	__u32 offset = ETH_HLEN + sizeof(struct ipv6hdr);
	struct ipv6hdr ip;
	__u8 next, extension[2];
	int i;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)) < 0)
		return -ZP_COUNT_MALFORMED;
	next = ip.nexthdr;
	for (i = 0; i < ZP_MAX_EXTENSIONS && next != IPPROTO_TCP; i++) {
		if (next == IPPROTO_UDP || next == IPPROTO_ICMPV6 || next == IPPROTO_NONE)
			return 0;
		if (next == IPPROTO_FRAGMENT)
			return -ZP_COUNT_FRAGMENT;
		if (next != IPPROTO_HOPOPTS && next != IPPROTO_ROUTING && next != IPPROTO_DSTOPTS &&
		    next != IPPROTO_AH)
			return -ZP_COUNT_UNKNOWN_HEADER;
		if (bpf_skb_load_bytes(skb, offset, extension, 2) < 0)
			return -ZP_COUNT_MALFORMED;
		/* Length in units of 8 bytes without the first; of 4 bytes without two for AH. */
		offset += next == IPPROTO_AH ? (extension[1] + 2) * 4 : (extension[1] + 1) * 8;
		next = extension[0];
	}
	if (next != IPPROTO_TCP)
		return -ZP_COUNT_UNKNOWN_HEADER;
	__builtin_memcpy(packet->source, &ip.saddr, 16);
	__builtin_memcpy(packet->dest, &ip.daddr, 16);
	packet->tcp = offset;
	return parse_tcp(skb, packet);
}

/*
 * An ACK and nothing else: a keepalive, the answer to one, or the receipt of what went the other
 * way. A frame that was padded seems to hold something.
 */
static __always_inline int is_bare_ack(struct __sk_buff *skb, const struct packet *packet)
{
	__u8 words;

	if (packet->flags != ZP_FLAG_ACK ||
	    bpf_skb_load_bytes(skb, packet->tcp + ZP_TCP_OFFSET, &words, 1) < 0)
		return 0;
	return skb->len <= packet->tcp + (words >> 4) * 4;
}

/* Return: 1 for TCP, 0 for what is not ours, minus the counter of an unusual exit. */
static __always_inline int parse(struct __sk_buff *skb, struct packet *packet)
{
	if (skb->protocol == bpf_htons(ETH_P_IP))
		return parse_v4(skb, packet);
	if (skb->protocol == bpf_htons(ETH_P_IPV6))
		return parse_v6(skb, packet);
	return 0;
}

#endif
