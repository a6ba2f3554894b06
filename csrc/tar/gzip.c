// SPDX-License-Identifier: Apache-2.0
/*
 * gzip (RFC 1952) with stored deflate blocks (RFC 1951, 3.2.4) alone: nothing is compressed, and
 * every reader of gzip reads it. Reading takes back what was written here and nothing else.
 */
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ustar.h"

#define HEADER	 10
#define TRAILER	 8
#define OVERHEAD 5

static uint32_t crc32(const unsigned char *data, size_t size)
{
	uint32_t table[256], crc = ~0u, i;
	int bit;

	for (i = 0; i < 256; i++) {
		uint32_t c = i;

		for (bit = 0; bit < 8; bit++)
			c = c & 1 ? 0xedb88320u ^ (c >> 1) : c >> 1;
		table[i] = c;
	}
	while (size--)
		crc = table[(crc ^ *data++) & 0xff] ^ (crc >> 8);
	return ~crc;
}

static void put_le32(unsigned char *at, uint32_t value)
{
	at[0] = value;
	at[1] = value >> 8;
	at[2] = value >> 16;
	at[3] = value >> 24;
}

static uint32_t get_le32(const unsigned char *at)
{
	return at[0] | at[1] << 8 | at[2] << 16 | (uint32_t)at[3] << 24;
}

int zp_gzip_write(int fd, const struct zp_archive *archive)
{
	size_t blocks = (archive->size + ZP_STORED - 1) / ZP_STORED, at = 0, done = 0, size;
	unsigned char *out = malloc(HEADER + archive->size + blocks * OVERHEAD + TRAILER);
	unsigned char *to = out;

	if (!out)
		return -ENOMEM;
	memcpy(to, "\x1f\x8b\x08\x00", 4);
	put_le32(to + 4, ZP_GZIP_MARK);
	to[8] = 0;
	to[9] = 3; /* Unix */
	to += HEADER;
	while (at < archive->size) {
		size_t n = archive->size - at < ZP_STORED ? archive->size - at : ZP_STORED;

		*to++ = at + n == archive->size; /* the last one? */
		to[0] = n;
		to[1] = n >> 8;
		to[2] = ~n;
		to[3] = ~n >> 8;
		memcpy(to + 4, archive->data + at, n);
		to += 4 + n;
		at += n;
	}
	put_le32(to, crc32(archive->data, archive->size));
	put_le32(to + 4, archive->size);
	size = to + TRAILER - out;
	while (done < size) {
		ssize_t n = write(fd, out + done, size - done);

		if (n < 0)
			return -errno;
		done += n;
	}
	return 0;
}

/* Everything up to the end of file, at most @limit bytes. */
static int read_all(int fd, unsigned char *data, size_t limit, size_t *ret_size)
{
	size_t size = 0;

	for (;;) {
		ssize_t n = read(fd, data + size, limit - size);

		if (n < 0)
			return -errno;
		if (n == 0)
			break;
		size += n;
		if (size == limit)
			return -ENOTSUP;
	}
	*ret_size = size;
	return 0;
}

int zp_gzip_read(int fd, struct zp_archive *ret_archive)
{
	size_t limit = ZP_LIMIT + ZP_LIMIT / ZP_STORED * OVERHEAD + 4096, size = 0, at = HEADER;
	unsigned char *in = malloc(limit);
	struct zp_archive archive = {.data = malloc(ZP_LIMIT)};
	int last = 0, r;

	if (!in || !archive.data)
		return -ENOMEM;
	r = read_all(fd, in, limit, &size);
	if (r < 0)
		return r;
	if (size < HEADER + TRAILER || memcmp(in, "\x1f\x8b\x08\x00", 4) != 0 ||
	    get_le32(in + 4) != ZP_GZIP_MARK)
		return -ENOTSUP;
	while (!last) {
		size_t n;

		if (size - at < OVERHEAD + TRAILER)
			return -EBADMSG;
		last = in[at] & 1;
		n = in[at + 1] | in[at + 2] << 8;
		if (in[at] > 1 || n > size - at - OVERHEAD - TRAILER || n > ZP_LIMIT - archive.size)
			return -EBADMSG;
		memcpy(archive.data + archive.size, in + at + OVERHEAD, n);
		archive.size += n;
		at += OVERHEAD + n;
	}
	if (get_le32(in + at) != crc32(archive.data, archive.size))
		return -EBADMSG;
	*ret_archive = archive;
	return 0;
}
