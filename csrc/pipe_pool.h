/* SPDX-License-Identifier: Apache-2.0 */
#ifndef ZP_PIPE_POOL_H
#define ZP_PIPE_POOL_H

#define ZP_POOL_PIPES 8

struct zp_pipe {
	int read_fd, write_fd;
};

#define ZP_PIPE_NONE ((struct zp_pipe){-EBADF, -EBADF})

struct zp_pipe_pool {
	struct zp_pipe pipes[ZP_POOL_PIPES];
	int count;
};

int zp_pipe_pool_get(struct zp_pipe_pool *pool, struct zp_pipe *ret_pipe);
void zp_pipe_pool_put(struct zp_pipe_pool *pool, struct zp_pipe *pipe, unsigned int held);
void zp_pipe_pool_deinit(struct zp_pipe_pool *pool);

#endif
