/* SPDX-License-Identifier: Apache-2.0 */
/* The native activator of one pod: what Python sees of it. */
#ifndef ZP_ACTIVATOR_H
#define ZP_ACTIVATOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../bpf/redirector.h"
#include "restore.h"

struct zp_activator;

enum zp_event_kind {
	ZP_EVENT_FIRED = 1,	      /* pid; value: enum zp_cause */
	ZP_EVENT_FIRE_FAILED = 2,     /* value: errno */
	ZP_EVENT_READY = 3,	      /* the app listens, the redirect is off */
	ZP_EVENT_CONNECT_TIMEOUT = 4, /* value: connections given up */
	ZP_EVENT_PENDING = 5,	      /* the first connection that waits in HOLDING */
	ZP_EVENT_FIRST_BYTE = 6,      /* the first byte to a client after a wake */
};

enum zp_cause {
	ZP_CAUSE_CONNECTION = 1,
	ZP_CAUSE_REQUEST = 2,
	ZP_CAUSE_TLS = 3, /* connections from the node, and no other: probes, perhaps */
};

struct zp_event {
	int kind, group;
	int64_t pid;
	uint64_t at_ns; /* CLOCK_MONOTONIC */
	int64_t value;
};

/* Sockets that a group keeps during a sleep. */
#define ZP_MAX_KEPT 64

/* How the first connection is handed over. */
enum zp_activation {
	ZP_ACTIVATION_AUTO, /* parked, but the node's own are spliced */
	ZP_ACTIVATION_PARK,
	ZP_ACTIVATION_SPLICE,
};

/* A port that wakes: of TCP or UDP. */
struct zp_wake_port {
	uint16_t number;
	uint8_t protocol;
};

struct zp_activator_options {
	bool count_loopback;		  /* what is said over lo is activity, too */
	bool udp;			  /* there may be ports of UDP */
	bool force_clsact;		  /* though there is TCX */
	const struct zp_network *ignored; /* sources that wake nobody */
	size_t ignored_count;
};

struct zp_group_options {
	enum zp_activation activation;
	bool probe_detection;
	uint32_t probe_buffer_size;
	uint64_t connect_timeout_ns, proxy_timeout_ns;
};

struct zp_group_stats {
	uint64_t held; /* now; the others are counted from the beginning */
	uint64_t spliced, parked, connections, probes, wakes, refused;
	uint64_t probes_awake;
	uint64_t tls_wakes;  /* by nobody but TLS from the node */
	uint64_t bare_wakes; /* by parked SYNs of which no handshake was completed */
};

/* Why a connection from the node counts, though it may be a probe's. */
enum zp_unread { ZP_UNREAD_NO, ZP_UNREAD_TLS, ZP_UNREAD_HTTP2 };

/* A tracked port, to be shown. */
struct zp_port_view {
	uint64_t last_activity_ns; /* CLOCK_MONOTONIC; 0: never, and what follows means nothing */
	uint8_t remote[16];	   /* whose it was; IPv4 is mapped into IPv6 */
	uint16_t remote_port;
	uint16_t number;
	uint8_t protocol;
	uint8_t mode; /* enum zp_mode */
	bool of_node; /* whether that is an address of the node */
	enum zp_unread unread;
};

int zp_activator_new(int netns_fd, const char *bpf_object,
		     const struct zp_activator_options *options,
		     struct zp_activator **ret_activator, const char **ret_step);
void zp_activator_free(struct zp_activator *activator);
int zp_activator_event_fd(const struct zp_activator *activator);
size_t zp_activator_events(struct zp_activator *activator, struct zp_event *events, size_t room);
int zp_activator_counter(struct zp_activator *activator, unsigned int which, uint64_t *ret_value);

int zp_group_add(struct zp_activator *activator, const struct zp_wake_port *ports, size_t count,
		 const struct zp_group_options *options, int *ret_group);
int zp_group_remove(struct zp_activator *activator, int group);
int zp_group_hold(struct zp_activator *activator, int group);
int zp_group_arm(struct zp_activator *activator, int group, struct zp_plan *plan);
int zp_group_wake(struct zp_activator *activator, int group);
int zp_group_disarm(struct zp_activator *activator, int group);
int zp_group_awake(struct zp_activator *activator, int group);
int zp_group_drop(struct zp_activator *activator, int group);
int zp_group_keep(struct zp_activator *activator, int group, const int *fds, size_t count);
int zp_group_last_activity(struct zp_activator *activator, int group, uint64_t *ret_ns);
int zp_group_last_undecided(struct zp_activator *activator, int group, uint64_t *ret_ns);
int zp_group_stats(struct zp_activator *activator, int group, struct zp_group_stats *ret_stats);
int zp_group_view(struct zp_activator *activator, int group, struct zp_port_view *views,
		  size_t *ret_count);

#endif
