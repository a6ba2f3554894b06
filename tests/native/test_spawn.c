// SPDX-License-Identifier: Apache-2.0
/* What a spawned program finds, and plans that outlive what they were made of. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "spawn.h"

static int wait_for(pid_t pid)
{
	int status = -1;

	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	return status;
}

static void a_program_has_what_it_was_given(void)
{
	char *const argv[] = {"sh", "-c", "cat; printf \"$WORD $(pwd) \"; ps -o sid= -p $$ >&3",
			      NULL};
	char *const envp[] = {"WORD=hello", "PATH=/usr/bin:/bin", NULL};
	struct zp_command command = {.argv = argv, .envp = envp, .cwd = "/usr"};
	int in[2], out[2];
	char text[64] = "";
	pid_t pid;

	CHECK(pipe2(in, O_CLOEXEC) == 0 && pipe2(out, O_CLOEXEC) == 0);
	command.stdio[0] = in[0];
	command.stdio[1] = out[1];
	command.stdio[2] = -1;
	CHECK(write(in[1], "in ", 3) == 3);
	close(in[1]);
	CHECK(zp_spawn(&command, &pid) == 0);
	close(in[0]);
	close(out[1]);
	CHECK(getpgid(pid) == pid || errno == ESRCH);
	wait_for(pid);
	CHECK(read(out[0], text, sizeof(text) - 1) > 0);
	close(out[0]);
	CHECK(strcmp(text, "in hello /usr ") == 0);
}

static void stdio_may_be_any_mixture_of_low_descriptors(void)
{
	char *const argv[] = {"/bin/sh", "-c", "echo out; echo err >&2", NULL};
	char *const envp[] = {NULL};
	struct zp_command command = {.argv = argv, .envp = envp, .cwd = "/", .stdio = {-1, 2, 1}};
	int saved[2] = {fcntl(1, F_DUPFD_CLOEXEC, 10), fcntl(2, F_DUPFD_CLOEXEC, 10)};
	char text[2][16] = {"", ""};
	int one[2], two[2];
	pid_t pid;
	int r;

	fflush(stdout);
	CHECK(pipe2(one, O_CLOEXEC) == 0 && pipe2(two, O_CLOEXEC) == 0);
	dup2(one[1], 1);
	dup2(two[1], 2);
	r = zp_spawn(&command, &pid); /* its 1 is our 2 and the other way round */
	dup2(saved[0], 1);
	dup2(saved[1], 2);
	close(saved[0]);
	close(saved[1]);
	close(one[1]);
	close(two[1]);
	CHECK(r == 0);
	wait_for(pid);
	CHECK(read(one[0], text[0], 15) > 0 && read(two[0], text[1], 15) > 0);
	close(one[0]);
	close(two[0]);
	CHECK(strcmp(text[0], "err\n") == 0 && strcmp(text[1], "out\n") == 0);
}

static void signals_are_the_default(void)
{
	char *const argv[] = {"/bin/sh", "-c", "kill -TERM $$; exit 3", NULL};
	char *const envp[] = {NULL};
	struct zp_command command = {.argv = argv, .envp = envp, .cwd = "/", .stdio = {-1, -1, -1}};
	struct sigaction ignore = {.sa_handler = SIG_IGN}, before;
	sigset_t set, mask;
	pid_t pid;
	int r, status;

	sigaction(SIGTERM, &ignore, &before);
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigprocmask(SIG_BLOCK, &set, &mask);
	r = zp_spawn(&command, &pid);
	sigprocmask(SIG_SETMASK, &mask, NULL);
	sigaction(SIGTERM, &before, NULL);
	CHECK(r == 0);
	status = wait_for(pid);
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
}

static void what_fails_leaves_no_child(void)
{
	char *const argv[] = {"/nowhere", NULL}, *const envp[] = {NULL};
	struct zp_command command = {.argv = argv, .envp = envp, .cwd = "/", .stdio = {-1, -1, -1}};
	int bad = open("/dev/null", O_RDONLY | O_CLOEXEC);
	pid_t pid = 0;

	CHECK(zp_spawn(&command, &pid) == -ENOENT);
	command.cwd = "/nowhere";
	CHECK(zp_spawn(&command, &pid) == -ENOENT);
	command.cwd = "/";
	command.stdio[1] = 9999;
	CHECK(zp_spawn(&command, &pid) == -EBADF);
	command.stdio[1] = -1;
	command.setns = &bad;
	command.setns_count = 1;
	CHECK(zp_spawn(&command, &pid) == -EINVAL);
	close(bad);
	CHECK(pid == 0);
	CHECK(waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD);
}

static void the_limit_of_open_files_is_what_was_asked_for(void)
{
	char *const argv[] = {"/bin/sh", "-c", "ulimit -Sn; ulimit -Hn", NULL};
	char *const envp[] = {NULL};
	struct zp_command command = {.argv = argv, .envp = envp, .cwd = "/", .stdio = {-1, 0, -1}};
	struct rlimit before, raised, after;
	struct zp_plan *plan = NULL;
	char text[64], expected[64];
	unsigned long asked;
	pid_t pid;
	int out[2], round, r;

	CHECK(getrlimit(RLIMIT_NOFILE, &before) == 0);
	raised = before;
	raised.rlim_cur = raised.rlim_max;
	CHECK(setrlimit(RLIMIT_NOFILE, &raised) == 0);
	for (round = 0; round < 4;
	     round++) { /* lowered by both ways, as ours, above the hard one */
		asked = (unsigned long[]){111, 112, 0, raised.rlim_max + 1}[round];
		command.open_files = asked;
		r = pipe2(out, O_CLOEXEC);
		command.stdio[1] = out[1];
		if (r == 0 && round == 1) {
			r = zp_plan_new(&command, NULL, &plan);
			command.open_files = 0;
			if (r == 0)
				r = zp_plan_fire(plan, &pid);
			zp_plan_unref(plan);
		} else if (r == 0) {
			r = zp_spawn(&command, &pid);
		}
		close(out[1]);
		CHECK(r == 0);
		wait_for(pid);
		memset(text, 0, sizeof(text));
		CHECK(read(out[0], text, sizeof(text) - 1) > 0);
		close(out[0]);
		snprintf(expected, sizeof(expected), "%lu\n%lu\n",
			 round < 2 ? asked : (unsigned long)raised.rlim_max,
			 (unsigned long)raised.rlim_max);
		CHECK(strcmp(text, expected) == 0);
	}
	CHECK(getrlimit(RLIMIT_NOFILE, &after) == 0 && after.rlim_cur == raised.rlim_cur);
	setrlimit(RLIMIT_NOFILE, &before);
}

static void a_plan_owns_copies(void)
{
	char word[] = "exit 7", sh[] = "/bin/sh", flag[] = "-c", home[] = "/";
	char *argv[] = {sh, flag, word, NULL}, *envp[] = {NULL};
	int fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	int netns = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	struct zp_command command = {.argv = argv,
				     .envp = envp,
				     .cwd = home,
				     .stdio = {fd, fd, -1},
				     .setns = &netns,
				     .setns_count = 1};
	struct zp_plan *plan = NULL;
	pid_t pid;
	int round, r;

	r = zp_plan_new(&command, "/ready", &plan);
	close(fd);
	close(netns);
	strcpy(word, "gone");
	strcpy(home, "?");
	argv[0] = NULL;
	CHECK(r == 0);
	for (round = 0; round < 2; round++) {
		CHECK(zp_plan_fire(plan, &pid) == 0);
		CHECK(WEXITSTATUS(wait_for(pid)) == 7);
	}
	CHECK(strcmp(plan->ready_path, "/ready") == 0);
	CHECK(zp_plan_ref(plan) == plan);
	zp_plan_unref(plan);
	zp_plan_unref(plan);
	zp_plan_unref(NULL);
}

static void a_plan_of_a_closed_descriptor_is_refused(void)
{
	char *const argv[] = {"/bin/true", NULL}, *const envp[] = {NULL};
	struct zp_command command = {
		.argv = argv, .envp = envp, .cwd = "/", .stdio = {-1, 9999, -1}};
	struct zp_plan *plan = NULL;

	CHECK(zp_plan_new(&command, NULL, &plan) == -EBADF);
	CHECK(plan == NULL);
}

void zp_tests_spawn(void)
{
	RUN(a_program_has_what_it_was_given);
	RUN(stdio_may_be_any_mixture_of_low_descriptors);
	RUN(signals_are_the_default);
	RUN(what_fails_leaves_no_child);
	RUN(the_limit_of_open_files_is_what_was_asked_for);
	RUN(a_plan_owns_copies);
	RUN(a_plan_of_a_closed_descriptor_is_refused);
}
