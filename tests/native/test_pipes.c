// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "check.h"
#include "pipe_pool.h"

static void pipes_are_kept_up_to_the_pools_size(void)
{
	struct zp_pipe pipes[ZP_POOL_PIPES + 2];
	struct zp_pipe_pool pool = {0};
	int i;

	for (i = 0; i < ZP_POOL_PIPES + 2; i++) {
		CHECK(zp_pipe_pool_get(&pool, &pipes[i]) == 0);
		CHECK(fcntl(pipes[i].read_fd, F_GETFL) & O_NONBLOCK);
		CHECK(fcntl(pipes[i].write_fd, F_GETFD) & FD_CLOEXEC);
	}
	for (i = 0; i < ZP_POOL_PIPES + 2; i++) {
		zp_pipe_pool_put(&pool, &pipes[i], 0);
		CHECK(pipes[i].read_fd < 0 && pipes[i].write_fd < 0);
	}
	CHECK(pool.count == ZP_POOL_PIPES);
	CHECK(zp_pipe_pool_get(&pool, &pipes[0]) == 0);
	CHECK(pool.count == ZP_POOL_PIPES - 1);
	zp_pipe_pool_put(&pool, &pipes[0], 0);
	zp_pipe_pool_deinit(&pool);
	CHECK(pool.count == 0);
}

static void a_pipe_with_bytes_in_it_is_not_kept(void)
{
	struct zp_pipe_pool pool = {0};
	struct zp_pipe pipe;

	CHECK(zp_pipe_pool_get(&pool, &pipe) == 0);
	CHECK(write(pipe.write_fd, "x", 1) == 1);
	zp_pipe_pool_put(&pool, &pipe, 1);
	CHECK(pool.count == 0);
	zp_pipe_pool_put(&pool, &pipe, 0); /* none: nothing happens */
	CHECK(pool.count == 0);
}

void zp_tests_pipes(void)
{
	RUN(pipes_are_kept_up_to_the_pools_size);
	RUN(a_pipe_with_bytes_in_it_is_not_kept);
}
