// SPDX-License-Identifier: Apache-2.0
/*
 * The native loop of a pod: one thread, one epoll set.
 *
 * The thread holds the lock while it works and leaves it while it waits, so the verbs of group.c,
 * called by Python's thread, see everything at rest. What must not be freed while a round of events
 * may name it (connections, groups) is marked and freed at the end of the round. Python is told
 * through a queue and an eventfd; the thread never calls Python.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "addresses.h"
#include "internal.h"

#define EPOLL_BATCH 64
#define STACK_SIZE  (128 * 1024)

uint64_t zp_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

/* zp_watch() - add a descriptor to the epoll set. Return: 0 or -errno. */
int zp_watch(struct zp_activator *activator, int fd, uint32_t events, struct zp_source *source)
{
	struct epoll_event event = {.events = events, .data.ptr = source};

	return epoll_ctl(activator->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

/*
 * zp_unwatch_close() - close a descriptor that was watched
 *
 * Closing alone would leave it in the epoll set for as long as a child that is not at its exec yet
 * has a copy, and its events would name what is freed by then.
 */
void zp_unwatch_close(struct zp_activator *activator, int fd)
{
	epoll_ctl(activator->epoll_fd, EPOLL_CTL_DEL, fd, NULL); /* ENOENT: never was in it */
	close(fd);
}

/* zp_kick() - wake the thread: deadlines may have changed. */
void zp_kick(struct zp_activator *activator)
{
	uint64_t one = 1;
	ssize_t n = write(activator->wake_fd, &one, sizeof(one));

	(void)n; /* EAGAIN: it is awake already */
}

/* zp_tell() - queue an event for Python. With the queue full the oldest is dropped. */
void zp_tell(struct zp_group *group, enum zp_event_kind kind, int64_t pid, int64_t value)
{
	struct zp_activator *activator = group->activator;
	uint64_t one = 1;
	ssize_t n;

	if (activator->event_count == ZP_MAX_EVENTS) {
		activator->event_first = (activator->event_first + 1) % ZP_MAX_EVENTS;
		activator->event_count--;
	}
	activator->events[(activator->event_first + activator->event_count++) % ZP_MAX_EVENTS] =
		(struct zp_event){.kind = kind,
				  .group = group->number,
				  .pid = pid,
				  .at_ns = zp_now_ns(),
				  .value = value};
	n = write(activator->event_fd, &one, sizeof(one));
	(void)n;
}

/* Return: 0 or -errno. */
static int read_node(struct zp_activator *activator)
{
	uint8_t(*addresses)[16] = malloc(ZP_MAX_ADDRESSES * sizeof(*addresses));
	size_t count = 0;
	int r = -ENOMEM;

	if (addresses)
		r = zp_addresses_read(addresses, ZP_MAX_ADDRESSES, &count);
	if (r == 0)
		r = zp_redirector_set_node(&activator->redirector, addresses, count);
	free(addresses);
	return r;
}

static int watch_node(struct zp_activator *activator)
{
	int r;

	activator->node_source.kind = ZP_SOURCE_NODE;
	r = zp_addresses_watch(&activator->node_fd);
	if (r == 0)
		r = zp_watch(activator, activator->node_fd, EPOLLIN, &activator->node_source);
	return r < 0 ? r : read_node(activator);
}

static void dispatch(struct zp_activator *activator, struct zp_source *source)
{
	struct zp_port_entry *port;
	struct zp_conn *conn;
	uint64_t ignored;
	ssize_t n;

	switch (source->kind) {
	case ZP_SOURCE_WAKE:
		n = read(activator->wake_fd, &ignored, sizeof(ignored));
		(void)n;
		break;
	case ZP_SOURCE_PORT:
		port = (struct zp_port_entry *)source;
		if (!port->group->removed)
			zp_conn_accept(port);
		break;
	case ZP_SOURCE_RING:
		zp_redirector_read_parked(&activator->redirector);
		break;
	case ZP_SOURCE_NODE:
		zp_addresses_drain(activator->node_fd);
		read_node(activator);
		break;
	case ZP_SOURCE_CONN:
		conn = (struct zp_conn *)source;
		if (!conn->dead)
			zp_conn_event(conn);
		break;
	}
}

static void accept_waiting(struct zp_activator *activator)
{
	struct zp_group *group;
	size_t port;
	int i;

	activator->accept_ns = ZP_NEVER;
	for (i = 0; i < ZP_MAX_GROUPS; i++) {
		group = activator->groups[i];
		for (port = 0; group && !group->removed && port < group->port_count; port++)
			if (group->ports[port].listen_fd >= 0)
				zp_conn_accept(&group->ports[port]);
	}
}

static void pump_again(struct zp_activator *activator)
{
	struct zp_conn *conn;

	activator->again_ns = ZP_NEVER;
	TAILQ_FOREACH(conn, &activator->conns, link)
	if (conn->again && !conn->dead)
		zp_splice_pump(conn);
}

static void scan_deadlines(struct zp_activator *activator, uint64_t now_ns)
{
	struct zp_conn *conn;

	activator->scan_ns = ZP_NEVER;
	TAILQ_FOREACH(conn, &activator->conns, link)
	{
		if (conn->dead)
			continue;
		if (conn->deadline_ns <= now_ns)
			zp_conn_timeout(conn, now_ns);
		if (!conn->dead && conn->deadline_ns < activator->scan_ns)
			activator->scan_ns = conn->deadline_ns;
	}
}

static void free_removed(struct zp_activator *activator)
{
	int i;

	zp_conn_sweep(activator);
	if (!activator->any_removed)
		return;
	activator->any_removed = false;
	for (i = 0; i < ZP_MAX_GROUPS; i++)
		if (activator->groups[i] && activator->groups[i]->removed)
			zp_group_free(activator->groups[i]);
}

/* What is due by time. Return: when something is due next; what has passed is due at once. */
static uint64_t work(struct zp_activator *activator)
{
	uint64_t now_ns = zp_now_ns(), due_ns = ZP_NEVER, group_ns;
	int i;

	if (now_ns >= activator->again_ns)
		pump_again(activator);
	if (now_ns >= activator->accept_ns)
		accept_waiting(activator);
	if (now_ns >= activator->scan_ns)
		scan_deadlines(activator, now_ns);
	for (i = 0; i < ZP_MAX_GROUPS; i++) {
		if (!activator->groups[i] || activator->groups[i]->removed)
			continue;
		zp_group_tick(activator->groups[i], now_ns);
		group_ns = zp_group_due(activator->groups[i]);
		if (group_ns < due_ns)
			due_ns = group_ns;
	}
	free_removed(activator);
	if (activator->linger_count > 0) {
		zp_conn_expire_flows(activator, now_ns, false);
		if (activator->linger_count > 0 &&
		    activator->linger[activator->linger_first].until_ns < due_ns)
			due_ns = activator->linger[activator->linger_first].until_ns;
	}
	if (activator->scan_ns < due_ns)
		due_ns = activator->scan_ns;
	if (activator->accept_ns < due_ns)
		due_ns = activator->accept_ns;
	if (activator->again_ns < due_ns)
		due_ns = activator->again_ns;
	return due_ns;
}

/* Wait until @due_ns at most; epoll_wait(2) by itself counts in milliseconds. */
static int wait_events(struct zp_activator *activator, struct epoll_event *events, uint64_t due_ns)
{
	struct pollfd any = {.fd = activator->epoll_fd, .events = POLLIN};
	uint64_t now_ns = zp_now_ns(), left_ns = due_ns > now_ns ? due_ns - now_ns : 0;
	struct timespec left = {.tv_sec = (time_t)(left_ns / 1000000000ull),
				.tv_nsec = (long)(left_ns % 1000000000ull)};

	if (left_ns > 0 && ppoll(&any, 1, due_ns == ZP_NEVER ? NULL : &left, NULL) <= 0)
		return 0;
	return epoll_wait(activator->epoll_fd, events, EPOLL_BATCH, 0);
}

static void *loop(void *argument)
{
	struct zp_activator *activator = argument;
	struct epoll_event events[EPOLL_BATCH];
	uint64_t due_ns = ZP_NEVER;
	int count, i;

	pthread_mutex_lock(&activator->lock);
	while (!activator->stop) {
		pthread_mutex_unlock(&activator->lock);
		count = wait_events(activator, events, due_ns);
		pthread_mutex_lock(&activator->lock);
		for (i = 0; i < count; i++)
			dispatch(activator, events[i].data.ptr);
		due_ns = work(activator);
	}
	pthread_mutex_unlock(&activator->lock);
	return NULL;
}

static int start_thread(struct zp_activator *activator)
{
	pthread_attr_t attributes;
	sigset_t all, before;
	int r;

	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, STACK_SIZE);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are Python's thread's business */
	r = pthread_create(&activator->thread, &attributes, loop, activator);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attributes);
	if (r == 0)
		activator->running = true;
	return -r;
}

static int open_descriptors(struct zp_activator *activator, int netns_fd)
{
	int r;

	activator->netns_fd = fcntl(netns_fd, F_DUPFD_CLOEXEC, 3);
	activator->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	activator->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	activator->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (activator->netns_fd < 0 || activator->epoll_fd < 0 || activator->wake_fd < 0 ||
	    activator->event_fd < 0)
		return -errno;
	r = zp_watch(activator, activator->wake_fd, EPOLLIN, &activator->wake_source);
	if (r == 0)
		r = zp_diag_open(netns_fd, &activator->diag_fd);
	return r;
}

static int note_parked(void *argument, void *record, size_t size)
{
	return zp_park_note(argument, record, size);
}

static int open_ring(struct zp_activator *activator)
{
	int fd = zp_redirector_watch_parked(&activator->redirector, note_parked, activator);

	activator->ring_source.kind = ZP_SOURCE_RING;
	return fd < 0 ? fd : zp_watch(activator, fd, EPOLLIN, &activator->ring_source);
}

/*
 * zp_activator_new() - the activator of a network namespace
 * @bpf_object: path of the compiled BPF programs
 * @ret_step: on failure, what was being done
 *
 * Return: 0, or -errno with nothing left behind.
 */
int zp_activator_new(int netns_fd, const char *bpf_object,
		     const struct zp_activator_options *options,
		     struct zp_activator **ret_activator, const char **ret_step)
{
	struct zp_activator *activator = calloc(1, sizeof(*activator));
	int r;

	*ret_step = "allocate memory";
	if (!activator)
		return -ENOMEM;
	pthread_mutex_init(&activator->lock, NULL);
	TAILQ_INIT(&activator->conns);
	TAILQ_INIT(&activator->spare);
	zp_park_init(&activator->park);
	activator->wake_source.kind = ZP_SOURCE_WAKE;
	activator->scan_ns = activator->accept_ns = activator->again_ns = ZP_NEVER;
	activator->epoll_fd = activator->wake_fd = activator->event_fd = -EBADF;
	activator->diag_fd = activator->netns_fd = activator->node_fd = -EBADF;
	activator->redirector = ZP_REDIRECTOR_NONE;
	*ret_step = "open descriptors";
	r = open_descriptors(activator, netns_fd);
	if (r == 0)
		r = zp_redirector_init(&activator->redirector, bpf_object, netns_fd, options,
				       ret_step);
	if (r == 0) {
		*ret_step = "open the ring of parked packets";
		r = open_ring(activator);
	}
	if (r == 0) {
		*ret_step = "read the node's addresses";
		r = watch_node(activator);
	}
	if (r == 0) {
		*ret_step = "start the thread";
		r = start_thread(activator);
	}
	if (r < 0) {
		zp_activator_free(activator);
		return r;
	}
	*ret_activator = activator;
	return 0;
}

static void close_fd(int fd)
{
	if (fd >= 0)
		close(fd);
}

/* zp_activator_free() - end the thread, reset what is held, detach; also when half made. */
void zp_activator_free(struct zp_activator *activator)
{
	int i;

	if (activator->running) {
		pthread_mutex_lock(&activator->lock);
		activator->stop = true;
		pthread_mutex_unlock(&activator->lock);
		zp_kick(activator);
		pthread_join(activator->thread, NULL);
	}
	for (i = 0; i < ZP_MAX_GROUPS; i++)
		if (activator->groups[i])
			zp_group_free(activator->groups[i]);
	zp_conn_expire_flows(activator, 0, true);
	zp_conn_free_spare(activator);
	zp_park_deinit(&activator->park);
	zp_redirector_deinit(&activator->redirector, activator->netns_fd);
	zp_pipe_pool_deinit(&activator->pipes);
	close_fd(activator->node_fd);
	close_fd(activator->diag_fd);
	close_fd(activator->event_fd);
	close_fd(activator->wake_fd);
	close_fd(activator->epoll_fd);
	close_fd(activator->netns_fd);
	pthread_mutex_destroy(&activator->lock);
	free(activator->peek);
	free(activator);
}

int zp_activator_event_fd(const struct zp_activator *activator)
{
	return activator->event_fd;
}

/* zp_activator_events() - take up to @room events, oldest first. Return: how many. */
size_t zp_activator_events(struct zp_activator *activator, struct zp_event *events, size_t room)
{
	uint64_t ignored;
	size_t count = 0;
	ssize_t n;

	pthread_mutex_lock(&activator->lock);
	while (count < room && activator->event_count > 0) {
		events[count++] = activator->events[activator->event_first];
		activator->event_first = (activator->event_first + 1) % ZP_MAX_EVENTS;
		activator->event_count--;
	}
	if (activator->event_count == 0) {
		n = read(activator->event_fd, &ignored, sizeof(ignored));
		(void)n;
	}
	pthread_mutex_unlock(&activator->lock);
	return count;
}

int zp_activator_counter(struct zp_activator *activator, unsigned int which, uint64_t *ret_value)
{
	return zp_redirector_counter(&activator->redirector, which, ret_value);
}
