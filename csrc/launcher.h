/* SPDX-License-Identifier: Apache-2.0 */
/* What the launcher's files share. See launcher.c for the theory of operation. */
#ifndef ZP_LAUNCHER_H
#define ZP_LAUNCHER_H

#include <limits.h>
#include <stddef.h>
#include <sys/types.h>

#define ZP_NAME	   "containerd-shim-zeropod-v2"
#define ZP_RUNTIME "io.containerd.zeropod.v2"

/* Everything that comes from outside has a bound. */
#define ZP_STDIN_MAX  (10u << 20)
#define ZP_ANSWER_MAX (64u << 10)
#define ZP_FOREVER    LLONG_MAX

/* A file descriptor that closes itself at the end of its scope. */
#define _cleanup_fd_ __attribute__((cleanup(zp_fd_deinit)))
void zp_fd_deinit(int *fd);

/* Hand the descriptor over to the caller: the scope no longer closes it. */
static inline int zp_fd_take(int *fd)
{
	int taken = *fd;

	*fd = -1;
	return taken;
}

/* The installation that this program belongs to. */
struct zp_install {
	char self[PATH_MAX];   /* resolved path of the launcher */
	char python[PATH_MAX]; /* the interpreter beside it */
	unsigned long long id; /* changes whenever the file is replaced */
};

int zp_install_init(struct zp_install *install);

/* launcher_zygote.c */
int zp_zygote_connect(const struct zp_install *install, int *ret_fd, int *ret_fresh);
int zp_interpreter_connect(const struct zp_install *install, int *ret_fd);

/* launcher_info.c */
int zp_info_print(void);

/* launcher_io.c */
long long zp_now_ms(void);
int zp_write_all(int fd, const void *data, size_t size);
int zp_readable_wait(int fd, long long deadline_ms);
int zp_read_all(int fd, size_t limit, long long deadline_ms, char **ret_data, size_t *ret_size);
int zp_peer_check(int fd);
int zp_socket_bound(int fd, int seconds);

#endif
