// SPDX-License-Identifier: Apache-2.0
/*
 * Starts a program by vfork and exec: no copy of page tables, about half a millisecond, whatever
 * the size of the process that asks.
 *
 * The child runs in the parent's memory until exec, so it only makes system calls and writes one
 * int, the errno of what failed. All signals are blocked around vfork, so that no handler of the
 * parent runs in the child; the child's dispositions are a table of its own and are reset.
 * Every descriptor but 0, 1 and 2 is expected to be CLOEXEC. The soft limit of descriptors is
 * lowered last: a shim raises its own, which is not what a container shall have.
 */
#define _GNU_SOURCE
#include "spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static int child_stdio(const int stdio[3])
{
	int fds[3];
	int i;

	/* First away from 0-2, so that no dup2 below overwrites one that is still needed. */
	for (i = 0; i < 3; i++) {
		if (stdio[i] < 0)
			fds[i] = open("/dev/null", O_RDWR | O_CLOEXEC);
		else
			fds[i] = stdio[i];
		if (fds[i] >= 0)
			fds[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, 3);
		if (fds[i] < 0)
			return -errno;
	}
	for (i = 0; i < 3; i++)
		if (dup2(fds[i], i) < 0)
			return -errno;
	return 0;
}

static void child_signals(void)
{
	struct sigaction action = {.sa_handler = SIG_DFL};
	sigset_t none;
	int number;

	for (number = 1; number < NSIG; number++)
		sigaction(number, &action, NULL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

static int child_limit(rlim_t open_files)
{
	struct rlimit limit;

	if (open_files == 0)
		return 0;
	if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
		return -errno;
	limit.rlim_cur = open_files < limit.rlim_max ? open_files : limit.rlim_max;
	return setrlimit(RLIMIT_NOFILE, &limit) < 0 ? -errno : 0;
}

/* Runs in the child, in the parent's memory. Return: never on success, else -errno. */
static int child_exec(const struct zp_command *command)
{
	size_t i;
	int r;

	setsid();
	for (i = 0; i < command->setns_count; i++)
		if (setns(command->setns[i], 0) < 0)
			return -errno;
	r = child_stdio(command->stdio);
	if (r < 0)
		return r;
	if (chdir(command->cwd) < 0)
		return -errno;
	r = child_limit(command->open_files);
	if (r < 0)
		return r;
	child_signals();
	execvpe(command->argv[0], command->argv, command->envp);
	return -errno;
}

/* vfork apart from everything else: what its caller keeps in registers stays as it is. */
static __attribute__((noinline)) pid_t start(const struct zp_command *command,
					     volatile int *failure)
{
	pid_t pid = vfork();

	if (pid == 0) {
		*failure = child_exec(command);
		_exit(127);
	}
	return pid;
}

/*
 * zp_spawn() - start a program in a session and process group of its own
 * @command: what to start
 * @ret_pid: its pid
 *
 * Return: 0, or -errno of the step that failed in the child (ENOENT: no such program).
 */
int zp_spawn(const struct zp_command *command, pid_t *ret_pid)
{
	volatile int failure = 0;
	sigset_t all, before;
	pid_t pid;
	int r;

	sigfillset(&all);
	r = pthread_sigmask(SIG_SETMASK, &all, &before);
	if (r)
		return -r;
	pid = start(command, &failure);
	r = pid < 0 ? -errno : failure;
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (pid > 0 && r < 0) {
		/* It has ended without having been the program: nobody else shall see it. */
		while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
			;
	}
	if (r < 0)
		return r;
	*ret_pid = pid;
	return 0;
}
