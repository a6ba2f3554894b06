// SPDX-License-Identifier: Apache-2.0
/*
 * containerd-shim-zeropod-v2: what containerd executes for `start`, `delete`, `-info` and `-v`.
 *
 * `-v` and `-info` are answered here. `start` and `delete` are handed to Python: a child that the
 * zygote forks (launcher_zygote.c), or, where there is none, an interpreter of our own. Both speak
 * the same four messages over a SOCK_SEQPACKET connection that nobody but that child holds:
 *
 *   launcher → child   build id; with it the descriptors of the request, of stdin and of the cwd
 *   child → launcher   "claim", with its credentials
 *   launcher → child   "go"
 *   child → launcher   exit code as one character, then what to print
 *
 * No start is lost: an end of file before the answer means that the child is dead, and the next
 * way is tried. None is doubled: a child works only after "go", which it cannot get from a launcher
 * that has given up; a child that took "go" and is silent beyond the bound is killed, and its death
 * awaited, before the next way begins.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "launcher.h"

#define CLAIM_WARM_MS 3000  /* a fork takes one */
#define CLAIM_COLD_MS 20000 /* imports on a busy node */
#define ANSWER_MS     60000 /* delete may wait for a runtime */

struct request {
	int fds[3]; /* request, stdin, cwd */
};

static int send_request(int fd, const struct request *request)
{
	union {
		char bytes[CMSG_SPACE(sizeof(request->fds))];
		struct cmsghdr align;
	} control = {0};
	struct iovec data = {.iov_base = ZP_BUILD_ID, .iov_len = strlen(ZP_BUILD_ID)};
	struct msghdr message = {
		.msg_iov = &data,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);

	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(request->fds));
	memcpy(CMSG_DATA(header), request->fds, sizeof(request->fds));
	return sendmsg(fd, &message, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

/* Return: 0 and the pid of the child, as the kernel says it; -EPIPE when there is none. */
static int receive_claim(int fd, long long deadline_ms, pid_t *ret_pid)
{
	union {
		char bytes[CMSG_SPACE(sizeof(struct ucred))];
		struct cmsghdr align;
	} control;
	char text[8];
	struct iovec data = {.iov_base = text, .iov_len = sizeof(text)};
	struct msghdr message = {
		.msg_iov = &data,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	struct ucred peer;
	struct cmsghdr *header;
	int ready = zp_readable_wait(fd, deadline_ms);

	if (ready < 0)
		return ready;
	if (recvmsg(fd, &message, MSG_CMSG_CLOEXEC) != 5 || memcmp(text, "claim", 5))
		return -EPIPE;
	header = CMSG_FIRSTHDR(&message);
	if (!header || header->cmsg_type != SCM_CREDENTIALS)
		return -EPIPE;
	memcpy(&peer, CMSG_DATA(header), sizeof(peer));
	if (peer.uid != geteuid() || peer.pid <= 1)
		return -EPERM;
	*ret_pid = peer.pid;
	return 0;
}

/* Kill the silent child and wait until the kernel has closed its end. */
static void put_down(int fd, pid_t pid)
{
	char rest[16];

	kill(pid, SIGKILL);
	while (zp_readable_wait(fd, zp_now_ms() + CLAIM_WARM_MS) == 0)
		if (recv(fd, rest, sizeof(rest), 0) <= 0)
			return;
}

/*
 * Have one child do the work.
 *
 * Return: 0 when it answered; -errno when it provably did nothing that lasts, so that another way
 * may be tried.
 */
static int exchange(int fd, const struct request *request, int claim_ms, int *ret_code)
{
	static char answer[ZP_ANSWER_MAX];
	ssize_t size;
	pid_t pid;
	int error;

	error = send_request(fd, request);
	if (error < 0)
		return error;
	error = receive_claim(fd, zp_now_ms() + claim_ms, &pid);
	if (error < 0)
		return error;
	if (send(fd, "go", 2, MSG_NOSIGNAL) < 0)
		return -errno;
	error = zp_readable_wait(fd, zp_now_ms() + ANSWER_MS);
	if (error < 0) {
		put_down(fd, pid);
		return error;
	}
	size = recv(fd, answer, sizeof(answer), 0);
	if (size <= 0)
		return -EPIPE;
	*ret_code = answer[0] - '0';
	error = zp_write_all(*ret_code ? STDERR_FILENO : STDOUT_FILENO, answer + 1, size - 1);
	if (error < 0)
		*ret_code = 1;
	return 0;
}

static int string_put(FILE *file, const char *text)
{
	return fwrite(text, strlen(text) + 1, 1, file) == 1 ? 0 : -EIO;
}

/* The request as NUL-terminated strings: form, parent's pid, argc, argc strings, environment. */
static int request_write(int fd, int argc, char **argv)
{
	FILE *file = fdopen(dup(fd), "w");
	int error = 0;

	if (!file)
		return -errno;
	fprintf(file, "1%c%d%c%d%c", 0, getppid(), 0, argc - 1, 0);
	for (int i = 1; i < argc; i++)
		error |= string_put(file, argv[i]);
	for (char **entry = environ; *entry; entry++)
		error |= string_put(file, *entry);
	if (fclose(file))
		error = -EIO;
	return error ? -EIO : 0;
}

/* stdin is kept, so that it can be read again when a child dies with it. */
static int stdin_keep(int fd)
{
	char *data;
	size_t size;
	int error = zp_read_all(STDIN_FILENO, ZP_STDIN_MAX, ZP_FOREVER, &data, &size);

	if (error == -EBADF)
		return 0;
	if (error < 0)
		return error;
	error = zp_write_all(fd, data, size);
	free(data);
	return error;
}

static int delegate(const struct zp_install *install, int argc, char **argv)
{
	_cleanup_fd_ int arguments = memfd_create("zeropod-request", MFD_CLOEXEC);
	_cleanup_fd_ int input = memfd_create("zeropod-stdin", MFD_CLOEXEC);
	_cleanup_fd_ int cwd = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
	struct request request = {{arguments, input, cwd}};
	const char *off = getenv("ZEROPOD_ZYGOTE");
	int error = -EAGAIN, code = 1, fresh;

	if (arguments < 0 || input < 0 || cwd < 0) {
		fprintf(stderr, ZP_NAME ": cannot prepare the request: %s\n", strerror(errno));
		return 1;
	}
	error = request_write(arguments, argc, argv);
	if (!error)
		error = stdin_keep(input);
	if (error < 0) {
		fprintf(stderr, ZP_NAME ": cannot read stdin: %s\n", strerror(-error));
		return 1;
	}
	error = -EAGAIN;
	if (!off || strcmp(off, "off")) {
		_cleanup_fd_ int zygote = -1;

		error = zp_zygote_connect(install, &zygote, &fresh);
		if (!error)
			error = exchange(zygote, &request, fresh ? CLAIM_COLD_MS : CLAIM_WARM_MS,
					 &code);
	}
	if (error) {
		_cleanup_fd_ int own = -1;

		error = zp_interpreter_connect(install, &own);
		if (!error)
			error = exchange(own, &request, CLAIM_COLD_MS, &code);
	}
	if (error)
		fprintf(stderr, ZP_NAME ": %s did not answer: %s\n", install->python,
			strerror(-error));
	return error ? 1 : code;
}

/* Which file we are, whatever link we were called by. Return: 0 or -errno. */
int zp_install_init(struct zp_install *install)
{
	ssize_t size = readlink("/proc/self/exe", install->self, sizeof(install->self) - 1);
	struct stat file;
	char *slash;

	if (size < 0)
		return -errno;
	install->self[size] = 0;
	slash = strrchr(install->self, '/');
	if (!slash || stat(install->self, &file) < 0)
		return -ENOENT;
	if (snprintf(install->python, sizeof(install->python), "%.*s/python3",
		     (int)(slash - install->self), install->self) >= (int)sizeof(install->python))
		return -ENAMETOOLONG;
	install->id = file.st_ino ^ (file.st_ctim.tv_sec * 1000000000ull + file.st_ctim.tv_nsec);
	return 0;
}

/* Go's flag syntax: one or two dashes, value after = or in the next argument. */
static int flag_is(const char *argument, const char *name)
{
	argument += strspn(argument, "-");
	size_t size = strcspn(argument, "=");

	if (strlen(name) != size || strncmp(argument, name, size))
		return 0;
	return argument[size] != '=' || strcmp(argument + size, "=false");
}

int main(int argc, char **argv)
{
	struct zp_install install;
	int at;

	for (at = 1; at < argc && argv[at][0] == '-' && argv[at][1]; at++) {
		if (flag_is(argv[at], "v") || flag_is(argv[at], "version")) {
			printf(ZP_NAME ":\n  Version:  %s\n  Revision: %s\n", ZP_VERSION,
			       ZP_BUILD_ID);
			return 0;
		}
		if (flag_is(argv[at], "info"))
			return zp_info_print();
		if (!flag_is(argv[at], "debug") && !strchr(argv[at], '='))
			at++;
	}
	if (at >= argc || (strcmp(argv[at], "start") && strcmp(argv[at], "delete"))) {
		fprintf(stderr, ZP_NAME ": containerd runs this program: expected start, delete, "
					"-info or -v\n");
		return 1;
	}
	if (zp_install_init(&install) < 0) {
		fprintf(stderr, ZP_NAME ": cannot find out where it is installed\n");
		return 1;
	}
	return delegate(&install, argc, argv);
}
