// SPDX-License-Identifier: Apache-2.0
/*
 * The prepared restore: command line, environment, directory and descriptors, all computed at
 * scale-down. Firing it is one vfork and exec.
 */
#define _GNU_SOURCE
#include "restore.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void free_strings(char *const *strings)
{
	size_t i;

	for (i = 0; strings && strings[i]; i++)
		free(strings[i]);
	free((void *)strings);
}

static int copy_strings(char *const *strings, char *const **ret_copy)
{
	size_t count = 0, i;
	char **copy;

	while (strings[count])
		count++;
	copy = calloc(count + 1, sizeof(*copy));
	if (!copy)
		return -ENOMEM;
	for (i = 0; i < count; i++) {
		copy[i] = strdup(strings[i]);
		if (!copy[i]) {
			free_strings(copy);
			return -ENOMEM;
		}
	}
	*ret_copy = copy;
	return 0;
}

static int copy_string(const char *string, char **ret_copy)
{
	if (!string)
		return 0;
	*ret_copy = strdup(string);
	return *ret_copy ? 0 : -ENOMEM;
}

static int copy_fd(int fd, int *ret_fd)
{
	if (fd < 0)
		return 0;
	fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (fd < 0)
		return -errno;
	*ret_fd = fd;
	return 0;
}

static int copy_command(const struct zp_command *from, struct zp_command *to)
{
	size_t i;
	int *setns;
	int r;

	r = copy_strings(from->argv, &to->argv);
	if (r == 0)
		r = copy_strings(from->envp, &to->envp);
	if (r == 0)
		r = copy_string(from->cwd, (char **)&to->cwd);
	for (i = 0; r == 0 && i < 3; i++)
		r = copy_fd(from->stdio[i], &to->stdio[i]);
	if (r < 0)
		return r;
	to->open_files = from->open_files;
	setns = calloc(from->setns_count + 1, sizeof(*setns));
	if (!setns)
		return -ENOMEM;
	to->setns = setns;
	for (i = 0; r == 0 && i < from->setns_count; i++) {
		r = copy_fd(from->setns[i], &setns[i]);
		if (r == 0)
			to->setns_count++;
	}
	return r;
}

/* zp_plan_new() - copy a command and what tells its success. Return: 0 or -errno. */
int zp_plan_new(const struct zp_command *command, const char *ready_path, struct zp_plan **ret_plan)
{
	struct zp_plan *plan = calloc(1, sizeof(*plan));
	int r;

	if (!plan)
		return -ENOMEM;
	plan->references = 1;
	plan->command.stdio[0] = plan->command.stdio[1] = plan->command.stdio[2] = -EBADF;
	r = copy_command(command, &plan->command);
	if (r == 0)
		r = copy_string(ready_path, &plan->ready_path);
	if (r < 0) {
		zp_plan_unref(plan);
		return r;
	}
	*ret_plan = plan;
	return 0;
}

struct zp_plan *zp_plan_ref(struct zp_plan *plan)
{
	__atomic_add_fetch(&plan->references, 1, __ATOMIC_RELAXED);
	return plan;
}

/* zp_plan_unref() - the last one frees it, also when half made; NULL is fine. */
void zp_plan_unref(struct zp_plan *plan)
{
	size_t i;

	if (!plan || __atomic_sub_fetch(&plan->references, 1, __ATOMIC_ACQ_REL) > 0)
		return;
	free_strings(plan->command.argv);
	free_strings(plan->command.envp);
	free((void *)plan->command.cwd);
	for (i = 0; i < 3; i++)
		if (plan->command.stdio[i] >= 0)
			close(plan->command.stdio[i]);
	for (i = 0; i < plan->command.setns_count; i++)
		close(plan->command.setns[i]);
	free((void *)plan->command.setns);
	free(plan->ready_path);
	free(plan);
}

/* zp_plan_fire() - start it. Return: 0 with the pid in @ret_pid, or -errno. */
int zp_plan_fire(const struct zp_plan *plan, pid_t *ret_pid)
{
	return zp_spawn(&plan->command, ret_pid);
}
