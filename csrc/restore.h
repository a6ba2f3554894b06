/* SPDX-License-Identifier: Apache-2.0 */
#ifndef ZP_RESTORE_H
#define ZP_RESTORE_H

#include <sys/types.h>

#include "spawn.h"

/* A restore that only needs to be fired. Owns copies of all it holds. */
struct zp_plan {
	struct zp_command command;
	char *ready_path; /* a file that appears when the processes run; NULL: zp_group_awake() */
	int references;
};

int zp_plan_new(const struct zp_command *command, const char *ready_path,
		struct zp_plan **ret_plan);
struct zp_plan *zp_plan_ref(struct zp_plan *plan);
void zp_plan_unref(struct zp_plan *plan);
int zp_plan_fire(const struct zp_plan *plan, pid_t *ret_pid);

#endif
