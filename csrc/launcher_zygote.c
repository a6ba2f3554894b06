// SPDX-License-Identifier: Apache-2.0
/*
 * The launcher's way to Python: the zygote, started on demand, or an interpreter of our own.
 *
 * A zygote serves one installation in one set of namespaces; its files lie in
 * /run/zeropod/z/<hash of install path and namespaces>/, root only:
 *
 *   lock          flock: who looks, finds nobody and starts one, does so alone
 *   <build>.s     the socket; <build> hashes the build id and the launcher's file
 *   <build>.log   what the zygote wrote to stderr
 *
 * The launcher itself binds the socket and gives it to the zygote listening, so that connections
 * queue while it imports and are reset if it dies; nobody polls for it. A new build removes the
 * files of the others, whose zygotes see that and leave. The zygote also gets a pidfd of our
 * parent, containerd, and ends with it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <dirent.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "launcher.h"

#define LOCK_SECONDS	5
#define CONNECT_SECONDS 3
#define BACKLOG		1024
/* Room in the process title for what the shim writes there. */
#define TITLE_ROOM 512

struct place {
	char directory[128];
	char build[24];
	struct sockaddr_un socket;
};

static unsigned long long fnv1a(unsigned long long hash, const void *data, size_t size)
{
	const unsigned char *at = data;

	while (size--)
		hash = (hash ^ *at++) * 0x100000001b3ull;
	return hash;
}

static unsigned long long namespaces_hash(unsigned long long hash)
{
	static const char *const names[] = {"mnt", "net", "pid", "ipc", "uts", "cgroup", "user"};

	for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
		char path[32];
		struct stat link;

		snprintf(path, sizeof(path), "/proc/self/ns/%s", names[i]);
		if (stat(path, &link) == 0) {
			hash = fnv1a(hash, &link.st_ino, sizeof(link.st_ino));
			hash = fnv1a(hash, &link.st_dev, sizeof(link.st_dev));
		}
	}
	return hash;
}

/* Make the directory, or accept one that is ours and that nobody else can write to. */
static int directory_secure(const char *path, mode_t forbidden)
{
	struct stat found;

	if (mkdir(path, 0700) < 0 && errno != EEXIST)
		return -errno;
	if (lstat(path, &found) < 0)
		return -errno;
	if (!S_ISDIR(found.st_mode) || found.st_uid != geteuid() || (found.st_mode & forbidden))
		return -EPERM;
	return 0;
}

static int place_init(const struct zp_install *install, struct place *place)
{
	const unsigned long long basis = 0xcbf29ce484222325ull;
	unsigned long long where = fnv1a(basis, install->self, strlen(install->self));
	unsigned long long what = fnv1a(basis, ZP_BUILD_ID, strlen(ZP_BUILD_ID));
	int error;

	where = namespaces_hash(where);
	what = fnv1a(what, &install->id, sizeof(install->id));
	snprintf(place->directory, sizeof(place->directory), "/run/zeropod/z/%016llx", where);
	snprintf(place->build, sizeof(place->build), "%016llx", what);
	place->socket.sun_family = AF_UNIX;
	snprintf(place->socket.sun_path, sizeof(place->socket.sun_path), "%.40s/%.16s.s",
		 place->directory, place->build);
	error = directory_secure("/run/zeropod", 022);
	if (!error)
		error = directory_secure("/run/zeropod/z", 077);
	if (!error)
		error = directory_secure(place->directory, 077);
	return error;
}

static int place_connect(const struct place *place, int *ret_fd)
{
	_cleanup_fd_ int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	int on = 1, error;

	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)) < 0)
		return -errno;
	error = zp_socket_bound(fd, CONNECT_SECONDS);
	if (error)
		return error;
	if (connect(fd, (const struct sockaddr *)&place->socket, sizeof(place->socket)) < 0)
		return -errno;
	error = zp_peer_check(fd);
	if (error)
		return error;
	*ret_fd = zp_fd_take(&fd);
	return 0;
}

/* The directory is this installation's alone: other builds in it are history. */
static void place_clear_others(const struct place *place)
{
	DIR *directory = opendir(place->directory);
	struct dirent *entry;

	if (!directory)
		return;
	while ((entry = readdir(directory)))
		if (entry->d_name[0] != '.' && strcmp(entry->d_name, "lock") &&
		    strncmp(entry->d_name, place->build, strlen(place->build)))
			unlinkat(dirfd(directory), entry->d_name, 0);
	closedir(directory);
}

static int place_listen(const struct place *place, int *ret_fd)
{
	_cleanup_fd_ int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -errno;
	unlink(place->socket.sun_path);
	if (bind(fd, (const struct sockaddr *)&place->socket, sizeof(place->socket)) < 0 ||
	    chmod(place->socket.sun_path, 0600) < 0 || listen(fd, BACKLOG) < 0)
		return -errno;
	*ret_fd = zp_fd_take(&fd);
	return 0;
}

/*
 * In the child: become an interpreter that has descriptors 0, 1 and 2, and @keep from 3 on.
 * Does not return.
 */
static void become_python(const struct zp_install *install, const char *role, const char *detail,
			  int log, const int *keep, int count)
{
	static char room[TITLE_ROOM];
	char *argv[] = {(char *)install->python, "-I", "-m", "zeropod.shim", (char *)role,
			(char *)detail,		 room, NULL};
	char *envp[] = {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
			"MALLOC_ARENA_MAX=1", "GLIBC_TUNABLES=glibc.malloc.tcache_count=0", NULL};
	int high[4], null = open("/dev/null", O_RDWR | O_CLOEXEC);
	sigset_t none;

	memset(room, ' ', sizeof(room) - 1);
	setsid();
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	if (null < 0 || chdir("/") < 0)
		_exit(127);
	/* Out of the way of 0 to 9 first: the order of the numbers is not ours. */
	log = fcntl(log < 0 ? null : log, F_DUPFD_CLOEXEC, 10);
	null = fcntl(null, F_DUPFD_CLOEXEC, 10);
	for (int i = 0; i < count; i++)
		high[i] = fcntl(keep[i], F_DUPFD_CLOEXEC, 10);
	if (dup2(null, 0) < 0 || dup2(null, 1) < 0 || dup2(log, 2) < 0)
		_exit(127);
	for (int i = 0; i < count; i++)
		if (dup2(high[i], 3 + i) < 0)
			_exit(127);
	syscall(SYS_close_range, 3 + count, ~0u, 0);
	execve(install->python, argv, envp);
	dprintf(2, ZP_NAME ": cannot execute %s: %s\n", install->python, strerror(errno));
	_exit(127);
}

static int zygote_start(const struct zp_install *install, const struct place *place)
{
	_cleanup_fd_ int listening = -1, log = -1;
	_cleanup_fd_ int parent = syscall(SYS_pidfd_open, getppid(), 0);
	char path[160];
	int error;
	pid_t pid;

	if (parent < 0)
		return -errno;
	if (access(install->python, X_OK) < 0)
		return -errno;
	place_clear_others(place);
	error = place_listen(place, &listening);
	if (error)
		return error;
	snprintf(path, sizeof(path), "%s/%s.log", place->directory, place->build);
	log = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_NOFOLLOW | O_CLOEXEC, 0600);
	pid = fork();
	if (pid < 0)
		return -errno;
	if (pid == 0) {
		int keep[] = {listening, parent};

		become_python(install, "zygote", place->socket.sun_path, log, keep, 2);
	}
	return 0;
}

static void on_alarm(int signal)
{
	(void)signal;
}

/* flock with a bound. Return: 0, -EINTR when it passed, -errno. */
static int lock_take(const struct place *place, int *ret_fd)
{
	struct itimerval bound = {.it_value.tv_sec = LOCK_SECONDS,
				  .it_interval.tv_sec = LOCK_SECONDS};
	struct sigaction action = {.sa_handler = on_alarm}, before;
	_cleanup_fd_ int fd = -1;
	char path[160];
	int error = 0;

	snprintf(path, sizeof(path), "%s/lock", place->directory);
	fd = open(path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		return -errno;
	sigaction(SIGALRM, &action, &before);
	setitimer(ITIMER_REAL, &bound, NULL);
	if (flock(fd, LOCK_EX) < 0)
		error = -errno;
	memset(&bound, 0, sizeof(bound));
	setitimer(ITIMER_REAL, &bound, NULL);
	sigaction(SIGALRM, &before, NULL);
	if (!error)
		*ret_fd = zp_fd_take(&fd);
	return error;
}

/*
 * A connection to the zygote of this installation; it is started if there is none.
 *
 * Return: 0, and in @ret_fresh whether it has yet to import everything; -errno: do without.
 */
int zp_zygote_connect(const struct zp_install *install, int *ret_fd, int *ret_fresh)
{
	_cleanup_fd_ int lock = -1;
	struct place place = {0};
	int error = place_init(install, &place);

	if (error)
		return error;
	*ret_fresh = 0;
	error = place_connect(&place, ret_fd);
	if (error != -ENOENT && error != -ECONNREFUSED)
		return error;
	*ret_fresh = 1;
	error = lock_take(&place, &lock);
	if (error)
		return error;
	error = place_connect(&place, ret_fd);
	if (error != -ENOENT && error != -ECONNREFUSED)
		return error;
	error = zygote_start(install, &place);
	if (error)
		return error;
	return place_connect(&place, ret_fd);
}

/* A connection to an interpreter that serves this one request. Return: 0 or -errno. */
int zp_interpreter_connect(const struct zp_install *install, int *ret_fd)
{
	_cleanup_fd_ int ours = -1, theirs = -1;
	int pair[2], on = 1;
	pid_t pid;

	if (access(install->python, X_OK) < 0)
		return -errno;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return -errno;
	ours = pair[0];
	theirs = pair[1];
	if (setsockopt(ours, SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)) < 0)
		return -errno;
	pid = fork();
	if (pid < 0)
		return -errno;
	if (pid == 0)
		become_python(install, "invoke", "", STDERR_FILENO, &theirs, 1);
	*ret_fd = zp_fd_take(&ours);
	return 0;
}
