/* SPDX-License-Identifier: Apache-2.0 */
#ifndef ZP_USTAR_H
#define ZP_USTAR_H

#include <stdint.h>
#include <stddef.h>

#define ZP_BLOCK     512
#define ZP_LIMIT     (1u << 20)	 /* a larger archive is left to the real tar */
#define ZP_STORED    65535u	 /* bytes in a stored deflate block */
#define ZP_GZIP_MARK 0x3154505aU /* "ZPT1" where gzip has the time: every block is stored */

/* The header of an entry: POSIX.1-1988, numbers in octal. */
struct zp_ustar {
	char name[100];
	char mode[8];
	char uid[8];
	char gid[8];
	char size[12];
	char mtime[12];
	char checksum[8];
	char type;
	char link[100];
	char magic[6];
	char version[2];
	char owner[32];
	char group[32];
	char major[8];
	char minor[8];
	char prefix[155];
	char pad[12];
};
_Static_assert(sizeof(struct zp_ustar) == ZP_BLOCK, "a header is one block");

/* An archive in memory. */
struct zp_archive {
	unsigned char *data;
	size_t size;
};

/* Return: 0; -ENOTSUP for what only the real tar can do; -errno. */
int zp_pack(int dir_fd, struct zp_archive *archive);
int zp_unpack(int dir_fd, const struct zp_archive *archive);

/* gzip with stored blocks: what GNU tar reads, too. Return: 0, -ENOTSUP, -errno. */
int zp_gzip_write(int fd, const struct zp_archive *archive);
int zp_gzip_read(int fd, struct zp_archive *ret_archive);

#endif
