// SPDX-License-Identifier: Apache-2.0
/*
 * Small I/O of the launcher: whole reads and writes, peers, bounds.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "launcher.h"

/* Close unless taken. */
void zp_fd_deinit(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

/* Return: the monotonic clock in milliseconds. */
long long zp_now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

/* Return: 0 when all of it was written, -errno otherwise. */
int zp_write_all(int fd, const void *data, size_t size)
{
	const char *at = data;

	while (size) {
		ssize_t done = write(fd, at, size);

		if (done < 0 && errno == EINTR)
			continue;
		if (done < 0)
			return -errno;
		at += done;
		size -= done;
	}
	return 0;
}

/* Return: 0 when there is something to read or the end of file, -ETIMEDOUT, -errno. */
int zp_readable_wait(int fd, long long deadline_ms)
{
	struct pollfd poller = {.fd = fd, .events = POLLIN};

	for (;;) {
		long long left = deadline_ms - zp_now_ms();
		int ready = poll(&poller, 1, left < 0 ? 0 : left > INT_MAX ? INT_MAX : left);

		if (ready < 0 && errno == EINTR)
			continue;
		return ready < 0 ? -errno : ready ? 0 : -ETIMEDOUT;
	}
}

/*
 * Read to the end of file.
 *
 * Return: 0, -EFBIG beyond @limit bytes, -ETIMEDOUT at @deadline_ms, -errno. The caller frees.
 */
int zp_read_all(int fd, size_t limit, long long deadline_ms, char **ret_data, size_t *ret_size)
{
	size_t size = 0, room = 4096;
	char *data = malloc(room);

	while (data) {
		int error = deadline_ms == ZP_FOREVER ? 0 : zp_readable_wait(fd, deadline_ms);
		ssize_t done = error ? -1 : read(fd, data + size, room - size);

		if (!error && done < 0 && errno == EINTR)
			continue;
		if (done < 0) {
			error = error ? error : -errno;
			free(data);
			return error;
		}
		if (done == 0) {
			*ret_data = data;
			*ret_size = size;
			return 0;
		}
		size += done;
		if (size > limit) {
			free(data);
			return -EFBIG;
		}
		if (size == room) {
			char *bigger = realloc(data, room *= 2);

			if (!bigger)
				free(data);
			data = bigger;
		}
	}
	return -ENOMEM;
}

/* Return: 0 when the other end belongs to our own user, -EPERM or -errno otherwise. */
int zp_peer_check(int fd)
{
	struct ucred peer;
	socklen_t size = sizeof(peer);

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0)
		return -errno;
	return peer.uid == geteuid() ? 0 : -EPERM;
}

/* Bound connect and send on a socket. Return: 0 or -errno. */
int zp_socket_bound(int fd, int seconds)
{
	struct timeval bound = {.tv_sec = seconds};

	return setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &bound, sizeof(bound)) < 0 ? -errno : 0;
}
