// SPDX-License-Identifier: Apache-2.0
/*
 * Empty pipes for splicing, kept for the next connection that has bytes to move. A connection has
 * a pipe only while bytes are in it, so a thousand quiet connections cost none.
 */
#define _GNU_SOURCE
#include "pipe_pool.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

/* zp_pipe_pool_get() - an empty pipe, pooled or new. Return: 0 or -errno. */
int zp_pipe_pool_get(struct zp_pipe_pool *pool, struct zp_pipe *ret_pipe)
{
	int fds[2];

	if (pool->count > 0) {
		*ret_pipe = pool->pipes[--pool->count];
		return 0;
	}
	if (pipe2(fds, O_CLOEXEC | O_NONBLOCK) < 0)
		return -errno;
	*ret_pipe = (struct zp_pipe){fds[0], fds[1]};
	return 0;
}

/* zp_pipe_pool_put() - give a pipe back; one that still holds @held bytes is closed. */
void zp_pipe_pool_put(struct zp_pipe_pool *pool, struct zp_pipe *pipe, unsigned int held)
{
	if (pipe->read_fd < 0)
		return;
	if (held == 0 && pool->count < ZP_POOL_PIPES) {
		pool->pipes[pool->count++] = *pipe;
	} else {
		close(pipe->read_fd);
		close(pipe->write_fd);
	}
	*pipe = ZP_PIPE_NONE;
}

void zp_pipe_pool_deinit(struct zp_pipe_pool *pool)
{
	while (pool->count > 0) {
		struct zp_pipe *pipe = &pool->pipes[--pool->count];

		close(pipe->read_fd);
		close(pipe->write_fd);
	}
}
