/* SPDX-License-Identifier: Apache-2.0 */
#ifndef ZP_SPAWN_H
#define ZP_SPAWN_H

#include <stddef.h>
#include <sys/types.h>

/*
 * What zp_spawn() starts. argv and envp end with NULL. stdio: -1 is /dev/null. open_files: its soft
 * limit of descriptors, 0 for ours.
 */
struct zp_command {
	char *const *argv;
	char *const *envp;
	const char *cwd;
	int stdio[3];
	const int *setns;
	size_t setns_count;
	unsigned long open_files;
};

int zp_spawn(const struct zp_command *command, pid_t *ret_pid);

#endif
