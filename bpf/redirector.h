/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* What the BPF programs and csrc/redirector.c share: fixed-width types, sizes asserted. */
#ifndef ZP_REDIRECTOR_H
#define ZP_REDIRECTOR_H

#include <linux/types.h>

/* On the activator's own connections to the app: they are never redirected, never counted. */
#define ZP_MARK 0x7a65726f

/* On packets that were parked and are put back: they are for the app, and come from outside. */
#define ZP_MARK_BACK 0x7a706261

/* A pod's tracked ports; more is refused when they are added. */
#define ZP_MAX_PORTS 64

/* Accepted connections: 3072 live ones and 1024 that were closed (ZP_MAX_CONNS, ZP_LINGER_MAX). */
#define ZP_MAX_FLOWS 4096

/* Handshakes under way: the 1,000 that may come at once, twice, for the LRU is only about one. */
#define ZP_MAX_OPENING 2048

/* Of the ring of parked packets: 320 SYNs; the loop takes them out as they come. */
#define ZP_RING_SIZE 65536

/* Where there are datagrams, which may be of 64 KiB. */
#define ZP_RING_SIZE_UDP (4 * 65536)

/* Interfaces without an Ethernet header (a tun device, a tunnel); more are not attached to. */
#define ZP_MAX_BARE 4

/* Set when the programs are loaded. */
struct zp_settings {
	__u32 bare_interfaces[ZP_MAX_BARE]; /* 0 ends the list */
	__u8 count_loopback;
	__u8 any_ignored; /* whether `ignored` has anything in it */
	__u8 padding[2];
};
_Static_assert(sizeof(struct zp_settings) == 20, "struct zp_settings");

/* Of the node, of both families. */
#define ZP_MAX_ADDRESSES 1024

/* Networks whose packets are nobody's. */
#define ZP_MAX_IGNORED 256

/* IPv4 is mapped into IPv6: 96 bits and its own. */
struct zp_network {
	__u32 bits;
	__u8 address[16];
};
_Static_assert(sizeof(struct zp_network) == 20, "struct zp_network");

struct zp_port_key {
	__be16 port_be;
	__u8 protocol; /* IPPROTO_TCP or IPPROTO_UDP */
	__u8 zero;
};
_Static_assert(sizeof(struct zp_port_key) == 4, "struct zp_port_key");

/* What is done with what opens a connection to a port. */
enum zp_mode {
	ZP_MODE_PASS,	  /* awake: nothing */
	ZP_MODE_REDIRECT, /* the activator accepts it */
	ZP_MODE_PARK,	  /* it is parked; the node's own are redirected */
	ZP_MODE_PARK_ALL, /* it is parked, whoever it is from */
};

/* In an array that user space has mapped: both sides read and write it in place. */
struct zp_port {
	__u64 last_activity_ns;			     /* CLOCK_MONOTONIC; 0: never */
	__u64 last_opening_ns;			     /* of a SYN to the awake app: who knows? */
	__u8 remote[16] __attribute__((aligned(8))); /* whose: to be shown, two may mix it */
	__be16 remote_port_be;
	__be16 activator_port_be;
	__u8 mode;   /* enum zp_mode */
	__u8 probes; /* whether the kubelet's probes do not count */
	__u8 full;   /* the activator holds all that it may: who would be redirected comes again */
	__u8 padding[1];
};
_Static_assert(sizeof(struct zp_port) == 40, "struct zp_port");

/* A redirected connection. IPv4 addresses are mapped into IPv6. */
struct zp_flow {
	__u8 remote[16];
	__u8 local[16];
	__be16 remote_port_be;
	__be16 local_port_be; /* the app's port, not the activator's */
};
_Static_assert(sizeof(struct zp_flow) == 36, "struct zp_flow");

/* Where a redirected connection goes. */
struct zp_route {
	__be32 isn_be; /* of its SYN: another SYN with the same one is a retransmission */
	__be16 activator_port_be;
	__u16 padding;
};
_Static_assert(sizeof(struct zp_route) == 8, "struct zp_route");

enum zp_record {
	ZP_RECORD_PARKED,   /* the packet was dropped */
	ZP_RECORD_ASKED,    /* it has passed: is it a probe? Its frame may be cut off */
	ZP_RECORD_ASKED_ON, /* and the same of what comes after a first segment of HTTP/2 */
};

/* A packet, as it lies in the ring. */
struct zp_parked {
	__u64 at_ns; /* CLOCK_MONOTONIC */
	struct zp_flow flow;
	__be32 isn_be; /* of a SYN */
	__u32 ifindex;
	__u32 length;	 /* of the frame */
	__u32 transport; /* offset in it of the TCP or UDP header */
	__u16 gso_size;	 /* 0: it is one segment */
	__u8 network;	 /* offset of the IP header */
	__u8 protocol;
	__u8 kind; /* enum zp_record */
	__u8 padding[7];
	__u8 frame[];
};
_Static_assert(sizeof(struct zp_parked) == 72, "struct zp_parked");

/* Connections from the node that do not count (yet), see quiet.bpf.h. */
#define ZP_MAX_QUIET 2048

/* Segments of one of which user space is asked; one of HTTP/2 may need some before it asks. */
#define ZP_MAX_ASKED 8

enum zp_quiet_state { ZP_QUIET_SILENT, ZP_QUIET_PREFACE, ZP_QUIET_SPOKEN };

struct zp_quiet {
	__u64 last_ns; /* CLOCK_MONOTONIC, of its last packet from the node */
	__u8 state;    /* enum zp_quiet_state */
	__u8 ended;    /* which sides have */
	__u8 asked;    /* of how many segments user space was */
	__u8 padding[5];
};
_Static_assert(sizeof(struct zp_quiet) == 16, "struct zp_quiet");

enum zp_counter {
	ZP_COUNT_REDIRECTED,	 /* opening packets sent to the activator */
	ZP_COUNT_FLOW_IN,	 /* later packets of redirected connections */
	ZP_COUNT_FLOW_OUT,	 /* answers of the activator */
	ZP_COUNT_ERROR_IN,	 /* ICMP errors about those answers */
	ZP_COUNT_FLOW_FORGOTTEN, /* opened anew */
	ZP_COUNT_PARKED,	 /* packets held for the app */
	ZP_COUNT_PARKED_FULL,	 /* dropped: no room to hold them */
	ZP_COUNT_FLOWS_FULL,	 /* dropped: no room to remember a handshake, or to hold it */
	ZP_COUNT_DIRECT_DROPPED, /* aimed at the activator's own port */
	ZP_COUNT_FRAGMENT,	 /* passed on: not the first of a datagram, so without ports */
	ZP_COUNT_MALFORMED,	 /* passed on: a header that cannot be, or is cut off */
	ZP_COUNT_UNKNOWN_HEADER, /* passed on: an IPv6 extension header that is not followed */
	ZP_COUNT_VLAN,		 /* passed on: it comes again, on its VLAN's own device */
	ZP_COUNT_ASKED,		 /* segments from the node of which user space was asked */
	ZP_COUNT_IGNORED,	 /* passed on: opened by an ignored source while the app sleeps */
	ZP_COUNT_FORWARDED,	 /* passed on: to another host, by way of the pod */
	ZP_COUNT_REWRITE_FAILED, /* dropped: half a rewrite must not pass */
	ZP_COUNTERS,
};

#endif
