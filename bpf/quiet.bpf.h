/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Connections from the node to an awake app that do not count as activity.
 *
 *   state    means                              left by
 *   SILENT   its opener has said nothing yet    his first segment, of which user space is asked
 *                                               → SPOKEN, PREFACE; its end
 *   PREFACE  he speaks HTTP/2, and may not have each later one is asked of, ZP_MAX_ASKED in all;
 *            asked for anything yet              user space settles it → SPOKEN, or as below
 *   SPOKEN   it is a probe, as far as we know   user space finds that it is none: forgotten, so it
 *                                               counts; its end
 *
 * A connection that was opened and closed without a byte was a probe of TCP. What cannot be read
 * (TLS) counts. One that is not remembered counts, too: its packets cannot be told from a user's.
 * Those that never end are swept by user space.
 *
 * User space is not asked while the app is in use anyway: a probe may prolong that by ZP_BUSY_NS.
 */
#ifndef ZP_QUIET_BPF_H
#define ZP_QUIET_BPF_H

#define ZP_BUSY_NS  100000000ull
#define ZP_FLAG_FIN 0x01
#define ZP_FIN_IN   1
#define ZP_FIN_OUT  2
#define ZP_PREFACE  0x50524920 /* "PRI ": no other protocol's request */

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, ZP_MAX_QUIET);
	__type(key, struct zp_flow);
	__type(value, struct zp_quiet);
} quiet SEC(".maps");

/* A connection is opened. Return: whether it is remembered as one that does not count yet. */
static __always_inline int quiet_open(const struct zp_flow *flow)
{
	struct zp_quiet value = {.last_ns = bpf_ktime_get_ns(), .state = ZP_QUIET_SILENT};

	return bpf_map_update_elem(&quiet, flow, &value, BPF_ANY) == 0;
}

/* Have user space look at what the opener says. Return: whether it does not count so far. */
static __always_inline int quiet_ask(struct __sk_buff *skb, const struct packet *packet,
				     const struct zp_port *port, const struct zp_flow *flow,
				     struct zp_quiet *found, __u32 data)
{
	__u8 kind = found->asked ? ZP_RECORD_ASKED_ON : ZP_RECORD_ASKED;
	__be32 begins = 0;

	if (found->asked++ == ZP_MAX_ASKED || found->last_ns - port->last_activity_ns < ZP_BUSY_NS)
		return 0;
	if (found->state == ZP_QUIET_SILENT) {
		bpf_skb_load_bytes(skb, data, &begins, sizeof(begins));
		found->state = begins == bpf_htonl(ZP_PREFACE) ? ZP_QUIET_PREFACE : ZP_QUIET_SPOKEN;
	}
	if (park(skb, packet, flow, 0, kind) < 0)
		return 0;
	count(ZP_COUNT_ASKED);
	return 1;
}

/* A packet of the opener. Return: whether it does not count. */
static __always_inline int quiet_in(struct __sk_buff *skb, const struct packet *packet,
				    const struct zp_port *port, const struct zp_flow *flow)
{
	struct zp_quiet *found = bpf_map_lookup_elem(&quiet, flow);
	__u32 data;
	__u8 words;

	if (!found)
		return 0;
	if (packet->flags & ZP_FLAG_RST) {
		bpf_map_delete_elem(&quiet, flow);
		return 1;
	}
	if (bpf_skb_load_bytes(skb, packet->transport + ZP_TCP_OFFSET, &words, 1) < 0)
		return 0;
	data = packet->transport + (words >> 4) * 4;
	found->last_ns = bpf_ktime_get_ns();
	if (found->state != ZP_QUIET_SPOKEN && packet->end > data &&
	    !quiet_ask(skb, packet, port, flow, found, data)) {
		bpf_map_delete_elem(&quiet, flow);
		return 0;
	}
	if (packet->flags & ZP_FLAG_FIN)
		found->ended |= ZP_FIN_IN;
	else if (found->ended == (ZP_FIN_IN | ZP_FIN_OUT))
		bpf_map_delete_elem(&quiet, flow);
	return 1;
}

/* A packet of the app. Return: whether it does not count. */
static __always_inline int quiet_out(const struct packet *packet)
{
	struct zp_quiet *found;
	struct zp_flow flow;

	__builtin_memcpy(flow.remote, packet->dest, 16);
	__builtin_memcpy(flow.local, packet->source, 16);
	flow.remote_port_be = packet->dest_be;
	flow.local_port_be = packet->source_be;
	found = bpf_map_lookup_elem(&quiet, &flow);
	if (!found)
		return 0;
	if (packet->flags & ZP_FLAG_RST) {
		bpf_map_delete_elem(&quiet, &flow);
		return 1;
	}
	if (packet->flags & ZP_FLAG_FIN)
		found->ended |= ZP_FIN_OUT;
	else if (found->ended == (ZP_FIN_IN | ZP_FIN_OUT))
		bpf_map_delete_elem(&quiet, &flow);
	return 1;
}

#endif
