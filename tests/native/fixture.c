// SPDX-License-Identifier: Apache-2.0
/* An activator of this process's own network namespace, and both ends of its connections. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"

#define PATIENCE_MS 10000

struct zp_activator *zp_fixture_open(void)
{
	struct zp_activator *activator = NULL;
	const char *step = NULL;
	int fd = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	int r = zp_activator_new(fd, "fake", &(struct zp_activator_options){0}, &activator, &step);

	close(fd);
	zp_check(r == 0, step, __FILE__, __LINE__);
	return activator;
}

struct zp_group_options zp_fixture_options(void)
{
	return (struct zp_group_options){.probe_detection = true,
					 .probe_buffer_size = 1024,
					 .connect_timeout_ns = 10000000000ull};
}

struct zp_plan *zp_fixture_plan(const char *script, const char *ready_path)
{
	char *const argv[] = {"/bin/sh", "-c", (char *)script, NULL}, *const envp[] = {NULL};
	struct zp_command command = {.argv = argv, .envp = envp, .cwd = "/", .stdio = {-1, -1, 2}};
	struct zp_plan *plan = NULL;

	zp_check(zp_plan_new(&command, ready_path, &plan) == 0, script, __FILE__, __LINE__);
	return plan;
}

static struct sockaddr_in address_of(uint16_t port)
{
	return (struct sockaddr_in){.sin_family = AF_INET,
				    .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
				    .sin_port = htons(port)};
}

int zp_fixture_listen(uint16_t port, int backlog)
{
	struct sockaddr_in address = address_of(port);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(fd, backlog) < 0)
		zp_check(false, "listen", __FILE__, __LINE__);
	return fd;
}

int zp_fixture_connect(uint16_t port)
{
	struct sockaddr_in address = address_of(port);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		zp_check(false, "connect", __FILE__, __LINE__);
	return fd;
}

/* The next event of a kind; those before it are passed over. */
bool zp_fixture_wait(struct zp_activator *activator, int kind, struct zp_event *ret_event)
{
	struct pollfd poll_fd = {.fd = zp_activator_event_fd(activator), .events = POLLIN};

	while (poll(&poll_fd, 1, PATIENCE_MS) == 1)
		while (zp_activator_events(activator, ret_event, 1) == 1)
			if (ret_event->kind == kind)
				return true;
	return false;
}

void zp_fixture_say(int fd, const char *text)
{
	if (send(fd, text, strlen(text), MSG_NOSIGNAL) != (ssize_t)strlen(text))
		zp_check(false, "send", __FILE__, __LINE__);
}

static ssize_t receive(int fd, char *buffer, size_t size)
{
	struct pollfd poll_fd = {.fd = fd, .events = POLLIN};

	if (poll(&poll_fd, 1, PATIENCE_MS) != 1) {
		errno = ETIMEDOUT;
		return -1;
	}
	return recv(fd, buffer, size, 0);
}

/* Whether exactly @text comes; "" is the end of file. */
bool zp_fixture_hear(int fd, const char *text)
{
	size_t size = strlen(text), got = 0;
	char buffer[512];
	ssize_t n;

	do {
		n = receive(fd, buffer + got, (size ? size : sizeof(buffer)) - got);
		if (n > 0)
			got += (size_t)n;
	} while (n > 0 && got < size);
	return n >= 0 && got == size && memcmp(buffer, text, size) == 0;
}

bool zp_fixture_reset(int fd)
{
	char buffer[512];
	ssize_t n;

	do
		n = receive(fd, buffer, sizeof(buffer));
	while (n > 0);
	return n < 0 && errno == ECONNRESET;
}
