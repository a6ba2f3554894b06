/* SPDX-License-Identifier: Apache-2.0 */
/* The activator's own structures; the files of the native loop share them. */
#ifndef ZP_INTERNAL_H
#define ZP_INTERNAL_H

#include <errno.h>
#include <pthread.h>
#include <sys/queue.h>

#include "activator.h"
#include "diag.h"
#include "park.h"
#include "pipe_pool.h"
#include "redirector.h"

#define ZP_MAX_GROUPS	   32
#define ZP_MAX_EVENTS	   256
#define ZP_MAX_CONNS	   3072 /* with ZP_LINGER_MAX: ZP_MAX_FLOWS */
#define ZP_PEEK_MAX	   65536
#define ZP_LINGER_MAX	   1024
#define ZP_SPARE_MAX	   16 /* connections whose memory is at hand when they come */
#define ZP_NEVER	   UINT64_MAX
#define ZP_MS		   1000000ull
#define ZP_GRACE_NS	   (50 * ZP_MS) /* an opener that says nothing is a user after this */
#define ZP_GREET_NS	   (2 * ZP_MS) /* one of HTTP/2 that says no more than its SETTINGS waits */
#define ZP_REQUEST_NS	   (1000 * ZP_MS)   /* half a request is a user's after this */
#define ZP_DRAIN_NS	   (1000 * ZP_MS)   /* a probe has this long to hang up */
#define ZP_LINGER_NS	   (600000 * ZP_MS) /* what a slow reader has not taken still finds its way */
#define ZP_CROWD_NS	   (1000 * ZP_MS)   /* how long a crowd keeps the redirect on */
#define ZP_RETRY_MIN	   (1 * ZP_MS)
#define ZP_RETRY_MAX	   (10 * ZP_MS)
#define ZP_HANDSHAKE_NS	   (250 * ZP_MS) /* one that takes longer has failed, as far as we know */
#define ZP_VERIFY_NS	   (3000 * ZP_MS) /* who has woken completes his handshake by then, or never */
#define ZP_BARE_WAKES	   2		  /* in a row that nobody completed: accept first */
#define ZP_ACCEPT_FIRST_NS (300000 * ZP_MS) /* and for so long */
#define ZP_LOOK_NS	   (ZP_MS / 4)	    /* between two looks for the ready file, while FIRED */
#define ZP_QUIET_NS                                                                                \
	(120000 * ZP_MS) /* a silent connection from the node is forgotten, and counts again */

/* What a descriptor in the epoll set is; the first member of each structure that owns one. */
enum zp_source_kind {
	ZP_SOURCE_WAKE,
	ZP_SOURCE_PORT,
	ZP_SOURCE_CONN,
	ZP_SOURCE_RING,
	ZP_SOURCE_NODE
};
struct zp_source {
	enum zp_source_kind kind;
};

/*
 * States of a connection
 *
 *   state       means                                   left by
 *   PROBING     accepted; user or probe?                bytes, end of file, grace → HELD, DRAINING;
 *               of HTTP/2: greeted where it waits       or closed
 *   DRAINING    probe answered                          it hangs up, or ZP_DRAIN_NS → closed
 *   HELD        a user, the app is not there            the app listens → CONNECTING
 *   CONNECTING  connect to the app under way            connected → SPLICING, refused → HELD
 *   SPLICING    bytes flow both ways                    both ends have ended, reset → closed
 */
enum zp_conn_state { ZP_PROBING, ZP_DRAINING, ZP_HELD, ZP_CONNECTING, ZP_SPLICING };

/* One direction. `held` bytes wait in the pipe, which is borrowed while there are any. */
struct zp_half {
	struct zp_pipe pipe;
	unsigned int held;
	bool ended, shut;
};

struct zp_conn {
	struct zp_source source;
	enum zp_conn_state state;
	struct zp_port_entry *port;
	int client_fd, app_fd;
	struct zp_half up, down; /* client → app, app → client */
	uint64_t accepted_ns, deadline_ns;
	bool again;	    /* has had its turn and more to move */
	bool tls;	    /* from the node, and cannot be read */
	bool waits;	    /* of HTTP/2: for the server's SETTINGS, it seems */
	bool greeted;	    /* they were sent, and their ACK was not taken out yet */
	size_t until_frame; /* while greeted: what passes before the next frame is looked at */
	bool dead;	    /* closed, to be freed after this round of events */
	struct zp_flow flow;
	struct zp_route route;
	TAILQ_ENTRY(zp_conn) link;
};

/*
 * States of a group (one container's ports)
 *
 *   state       mode      openers               left by
 *   AWAKE       pass      none come             hold → HOLDING
 *   HOLDING     asleep    held                  arm → ARMED, awake → CONNECTING
 *   ARMED       asleep    the first user fires  fire → FIRED, disarm → HOLDING, awake → CONNECTING
 *   FIRED       asleep    held                  processes run or awake → CONNECTING, arm → ARMED,
 *                                               hold → HOLDING
 *   CONNECTING  per port  connected, or put     all ports listen, or time is up → AWAKE;
 *               until it  back, as there is     hold → HOLDING
 *               has room  room
 *   DROPPED     pass      refused               hold → HOLDING
 *
 * Asleep, a port's openers are parked or redirected, as `activation` says. A parked one may be
 * forged: who sends a SYN need not be there. After ZP_BARE_WAKES wake-ups in a row by parked SYNs
 * of which no handshake was completed, openers are accepted first for a while.
 */
enum zp_group_state {
	ZP_GROUP_AWAKE,
	ZP_GROUP_HOLDING,
	ZP_GROUP_ARMED,
	ZP_GROUP_FIRED,
	ZP_GROUP_CONNECTING,
	ZP_GROUP_DROPPED,
	ZP_GROUP_STATES,
};

struct zp_port_entry {
	struct zp_source source;
	struct zp_group *group;
	uint16_t port, activator_port;
	uint8_t protocol; /* IPPROTO_TCP; IPPROTO_UDP: always parked, without a listening socket */
	struct zp_port *shared; /* with the BPF programs */
	int listen_fd;
	bool up;		   /* listens again, redirect is off */
	unsigned int connecting;   /* connects under way */
	uint64_t listens_since_ns; /* seen to listen after a sleep; 0: not yet */
};

struct zp_group {
	struct zp_activator *activator;
	bool removed; /* freed after this round of events */
	bool pending_told, ready_told, first_byte_due;
	int number;
	enum zp_group_state state;
	struct zp_group_options options;
	struct zp_port_entry ports[ZP_MAX_PORTS];
	size_t port_count;
	struct zp_plan *plan;
	int kept_fds[ZP_MAX_KEPT]; /* closed when the processes run again */
	size_t kept_count;
	uint64_t deadline_ns, retry_ns, retry_step_ns;
	uint64_t returned, opens_before, progress_ns; /* SYNs put back, see in_flight() */
	uint64_t opens_at_wake, verify_ns;
	uint64_t accept_first_until_ns;
	unsigned int bare_wakes;
	struct zp_group_stats stats;
	struct zp_flow unread_flow; /* the last one from the node that cannot be read, */
	enum zp_unread unread;	    /* and why */
};

struct zp_linger {
	struct zp_flow flow;
	struct zp_route route;
	uint64_t until_ns;
};

struct zp_activator {
	pthread_mutex_t lock; /* everything below; the loop's thread leaves it while it waits */
	pthread_t thread;
	bool running, stop;
	int netns_fd, epoll_fd, diag_fd;
	int wake_fd, event_fd; /* to the thread, to Python */
	struct zp_source wake_source;
	struct zp_redirector redirector;
	struct zp_pipe_pool pipes;
	struct zp_park park;
	struct zp_source ring_source, node_source;
	int node_fd; /* the node's addresses change */
	struct zp_group *groups[ZP_MAX_GROUPS];
	TAILQ_HEAD(zp_conns, zp_conn) conns, spare;
	size_t conn_count, spare_count;
	bool any_dead, any_removed;
	bool full;	    /* ZP_MAX_CONNS are there; who comes waits until one has ended */
	uint64_t again_ns;  /* when connections with `again` have their turn */
	uint64_t scan_ns;   /* when a connection's deadline may have passed */
	uint64_t accept_ns; /* when connections that were left waiting are accepted */
	char *peek;	    /* made for the first hold */
	struct zp_event events[ZP_MAX_EVENTS];
	size_t event_first, event_count;
	struct zp_linger *linger; /* a ring, made for the first closed connection */
	size_t linger_first, linger_count;
};

uint64_t zp_now_ns(void);
int zp_watch(struct zp_activator *activator, int fd, uint32_t events, struct zp_source *source);
void zp_unwatch_close(struct zp_activator *activator, int fd);
void zp_tell(struct zp_group *group, enum zp_event_kind kind, int64_t pid, int64_t value);
void zp_kick(struct zp_activator *activator);

int zp_conn_reserve(struct zp_activator *activator);
void zp_conn_free_spare(struct zp_activator *activator);
void zp_conn_accept(struct zp_port_entry *port);
void zp_conn_event(struct zp_conn *conn);
void zp_conn_deadline(struct zp_conn *conn, uint64_t deadline_ns);
void zp_conn_user(struct zp_conn *conn);
void zp_conn_probe(struct zp_conn *conn);
void zp_conn_drain(struct zp_conn *conn);
void zp_conn_answer(struct zp_conn *conn, const char *bytes, size_t size);
void zp_conn_timeout(struct zp_conn *conn, uint64_t now_ns);
void zp_conn_connect(struct zp_conn *conn);
void zp_conn_close(struct zp_conn *conn, bool reset);
void zp_conn_sweep(struct zp_activator *activator);
void zp_conn_expire_flows(struct zp_activator *activator, uint64_t now_ns, bool all);
void zp_greeting_look(struct zp_conn *conn, const char *bytes, size_t size, size_t limit);
bool zp_greeting_timeout(struct zp_conn *conn);
size_t zp_greeting_room(struct zp_conn *conn, size_t room);
void zp_greeting_passed(struct zp_conn *conn, size_t size);
void zp_splice_start(struct zp_conn *conn);
void zp_splice_pump(struct zp_conn *conn);

/* For every connection of a group, newest last; @conn may be closed in the body. */
#define ZP_FOR_EACH_CONN(conn, owner)                                                              \
	TAILQ_FOREACH(conn, &(owner)->activator->conns, link)                                      \
	if ((conn)->port->group == (owner) && !(conn)->dead)

int zp_port_init(struct zp_group *group, const struct zp_wake_port *wake);
void zp_port_hold(struct zp_port_entry *port, bool on);
void zp_ports_hold(struct zp_group *group, bool on);
size_t zp_ports_parked(struct zp_group *group);
size_t zp_ports_return(struct zp_group *group);

struct zp_group *zp_group_lock(struct zp_activator *activator, int number);
void zp_group_forget_plan(struct zp_group *group);
void zp_group_close_kept(struct zp_group *group);
void zp_group_connect(struct zp_group *group);
size_t zp_group_waiting(struct zp_group *group);
void zp_group_user(struct zp_group *group, struct zp_conn *conn);
void zp_group_parked(struct zp_group *group);
void zp_group_tick(struct zp_group *group, uint64_t now_ns);
uint64_t zp_group_due(const struct zp_group *group);
void zp_group_free(struct zp_group *group);

#endif
