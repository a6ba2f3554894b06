/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Packets for user space, by the ring: those that open something, held until the app is there (what
 * does not fit is dropped as well, and comes again), and those of which it is asked.
 *
 * A record's size must be known to the verifier, so there are three.
 */
#ifndef ZP_PARK_BPF_H
#define ZP_PARK_BPF_H

#define ZP_ROOM_SMALL 128   /* a SYN */
#define ZP_ROOM_LARGE 2048  /* one with data, a datagram */
#define ZP_ROOM_HUGE  65600 /* a datagram of many segments */

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, ZP_RING_SIZE);
} parked SEC(".maps");

static __always_inline int put(struct __sk_buff *skb, const struct zp_parked *head,
			       const __u32 room)
{
	__u64 length = head->length; /* of 64 bits: compared as it is */
	struct zp_parked *record;

	record = bpf_ringbuf_reserve(&parked, sizeof(*record) + room, 0);
	if (!record)
		return -1;
	*record = *head;
	if (length > room)
		goto fail;
	asm volatile("" : "+r"(length)); /* two comparisons, or the verifier sees none */
	if (length < ETH_HLEN || bpf_skb_load_bytes(skb, 0, record->frame, length) < 0)
		goto fail;
	bpf_ringbuf_submit(record, 0);
	return 0;
fail:
	bpf_ringbuf_discard(record, 0);
	return -1;
}

/* Return: 0, or -1 where there was no room. */
static __always_inline int park(struct __sk_buff *skb, const struct packet *packet,
				const struct zp_flow *flow, __be32 isn_be, __u8 kind)
{
	struct zp_parked head = {
		.at_ns = bpf_ktime_get_ns(),
		.ifindex = skb->ifindex,
		.length = skb->len,
		.network = link_header(skb),
		.transport = packet->transport,
		.isn_be = isn_be,
		.gso_size = skb->gso_size,
		.protocol = packet->protocol,
		.kind = kind,
		.flow = *flow,
	};

	if (kind == ZP_RECORD_ASKED && head.length > ZP_ROOM_LARGE)
		head.length = ZP_ROOM_LARGE;
	if (head.length <= ZP_ROOM_SMALL)
		return put(skb, &head, ZP_ROOM_SMALL);
	if (head.length <= ZP_ROOM_LARGE)
		return put(skb, &head, ZP_ROOM_LARGE);
	return put(skb, &head, ZP_ROOM_HUGE);
}

#endif
