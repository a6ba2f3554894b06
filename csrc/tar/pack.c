// SPDX-License-Identifier: Apache-2.0
/*
 * A directory tree becomes a ustar archive in memory, and the reverse.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "ustar.h"

#define DIRS_MAX 256

static void *room(struct zp_archive *archive, size_t size)
{
	size_t whole = (size + ZP_BLOCK - 1) / ZP_BLOCK * ZP_BLOCK;
	void *at;

	if (archive->size + whole + 2 * ZP_BLOCK > ZP_LIMIT)
		return NULL;
	if (!archive->data)
		archive->data = calloc(1, ZP_LIMIT);
	if (!archive->data)
		return NULL;
	at = archive->data + archive->size;
	archive->size += whole;
	return at;
}

static unsigned int checksum(const struct zp_ustar *header)
{
	const unsigned char *bytes = (const void *)header;
	unsigned int sum = 8 * ' ';
	size_t i;

	for (i = 0; i < sizeof(*header); i++)
		if (i < offsetof(struct zp_ustar, checksum) || i >= offsetof(struct zp_ustar, type))
			sum += bytes[i];
	return sum;
}

/* Write an octal number that fits. Return: false when it does not. */
static bool octal(char *field, size_t size, unsigned long long value)
{
	if (value >> (3 * (size - 1)))
		return false;
	snprintf(field, size, "%0*llo", (int)size - 1, value);
	return true;
}

static char type_of(mode_t mode)
{
	switch (mode & S_IFMT) {
	case S_IFREG:
		return '0';
	case S_IFLNK:
		return '2';
	case S_IFCHR:
		return '3';
	case S_IFBLK:
		return '4';
	case S_IFDIR:
		return '5';
	case S_IFIFO:
		return '6';
	}
	return 0;
}

/* The data of a regular file after its header. Return: 0 or -errno. */
static int pack_data(int dir_fd, const char *name, const struct stat *st,
		     struct zp_archive *archive)
{
	char *data = room(archive, st->st_size);
	off_t done = 0;
	int fd;

	if (!data)
		return -ENOTSUP;
	fd = openat(dir_fd, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	while (done < st->st_size) {
		ssize_t n = read(fd, data + done, st->st_size - done);

		if (n <= 0)
			break;
		done += n;
	}
	close(fd);
	return done == st->st_size ? 0 : -EIO;
}

static int pack_entry(int dir_fd, const char *name, const char *path, const struct stat *st,
		      struct zp_archive *archive)
{
	char type = type_of(st->st_mode);
	struct zp_ustar *header;
	bool fits;

	if (!type || (type != '5' && st->st_nlink > 1) || strlen(path) >= sizeof(header->name))
		return -ENOTSUP;
	header = room(archive, sizeof(*header));
	if (!header)
		return -ENOTSUP;
	strcpy(header->name, path);
	header->type = type;
	memcpy(header->magic, "ustar", 6);
	memcpy(header->version, "00", 2);
	fits = octal(header->mode, sizeof(header->mode), st->st_mode & 07777) &&
	       octal(header->uid, sizeof(header->uid), st->st_uid) &&
	       octal(header->gid, sizeof(header->gid), st->st_gid) &&
	       octal(header->size, sizeof(header->size), type == '0' ? st->st_size : 0) &&
	       st->st_mtime >= 0 && octal(header->mtime, sizeof(header->mtime), st->st_mtime) &&
	       octal(header->major, sizeof(header->major), major(st->st_rdev)) &&
	       octal(header->minor, sizeof(header->minor), minor(st->st_rdev));
	if (!fits)
		return -ENOTSUP;
	if (type == '2') {
		ssize_t n = readlinkat(dir_fd, name, header->link, sizeof(header->link));

		if (n < 0 || n >= (ssize_t)sizeof(header->link))
			return n < 0 ? -errno : -ENOTSUP;
	}
	snprintf(header->checksum, sizeof(header->checksum), "%06o", checksum(header));
	header->checksum[7] = ' ';
	return type == '0' ? pack_data(dir_fd, name, st, archive) : 0;
}

/* A directory's contents. Takes @fd. */
static int pack_tree(int fd, const char *path, dev_t device, struct zp_archive *archive)
{
	DIR *dir = fdopendir(fd);
	struct dirent *entry;
	int r = 0;

	if (!dir) {
		r = -errno;
		close(fd);
		return r;
	}
	while (r == 0 && (entry = readdir(dir))) {
		char below[PATH_MAX];
		struct stat st;
		int child;

		if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
			continue;
		if (fstatat(fd, entry->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0) {
			r = -errno;
			break;
		}
		if (S_ISSOCK(st.st_mode))
			continue; /* as tar does */
		snprintf(below, sizeof(below), "%s%s%s", path, entry->d_name,
			 S_ISDIR(st.st_mode) ? "/" : "");
		if (st.st_dev != device && !S_ISDIR(st.st_mode))
			r = -ENOTSUP;
		else
			r = pack_entry(fd, entry->d_name, below, &st, archive);
		if (r < 0 || !S_ISDIR(st.st_mode) || st.st_dev != device)
			continue;
		child = openat(fd, entry->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		r = child < 0 ? -errno : pack_tree(child, below, device, archive);
	}
	closedir(dir);
	return r;
}

int zp_pack(int dir_fd, struct zp_archive *archive)
{
	struct stat st;
	int r, fd;

	if (fstat(dir_fd, &st) < 0)
		return -errno;
	r = pack_entry(dir_fd, ".", "./", &st, archive);
	if (r < 0)
		return r;
	fd = openat(dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	r = pack_tree(fd, "./", st.st_dev, archive);
	if (r == 0)
		archive->size += 2 * ZP_BLOCK; /* zeroes: the end */
	return r;
}

static unsigned long long number(const char *field, size_t size)
{
	unsigned long long value = 0;

	for (; size && *field >= '0' && *field <= '7'; field++, size--)
		value = value * 8 + (*field - '0');
	return value;
}

#define NUMBER(header, field) number((header)->field, sizeof((header)->field))

static int unpack_file(int dir_fd, const char *name, const void *data, size_t size)
{
	int fd = openat(dir_fd, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	size_t done = 0;

	if (fd < 0)
		return -errno;
	while (done < size) {
		ssize_t n = write(fd, (const char *)data + done, size - done);

		if (n < 0) {
			close(fd);
			return -errno;
		}
		done += n;
	}
	return close(fd) < 0 ? -errno : 0;
}

static int unpack_entry(int dir_fd, const char *name, const struct zp_ustar *header,
			const void *data)
{
	dev_t device = makedev(NUMBER(header, major), NUMBER(header, minor));
	char link[sizeof(header->link) + 1];
	int r = 0;

	switch (header->type) {
	case '0':
		return unpack_file(dir_fd, name, data, NUMBER(header, size));
	case '2':
		snprintf(link, sizeof(link), "%.*s", (int)sizeof(header->link), header->link);
		r = symlinkat(link, dir_fd, name);
		break;
	case '3':
		r = mknodat(dir_fd, name, S_IFCHR | 0600, device);
		break;
	case '4':
		r = mknodat(dir_fd, name, S_IFBLK | 0600, device);
		break;
	case '5':
		r = mkdirat(dir_fd, name, 0700);
		if (r < 0 && errno == EEXIST)
			r = 0;
		break;
	case '6':
		r = mkfifoat(dir_fd, name, 0600);
		break;
	default:
		return -ENOTSUP;
	}
	return r < 0 ? -errno : 0;
}

/* Owner, mode and time, in the order in which they survive each other. */
static int unpack_metadata(int dir_fd, const char *name, const struct zp_ustar *header)
{
	struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_sec = NUMBER(header, mtime)}};

	if (fchownat(dir_fd, name, NUMBER(header, uid), NUMBER(header, gid), AT_SYMLINK_NOFOLLOW) <
	    0)
		return -errno;
	if (header->type != '2' && fchmodat(dir_fd, name, NUMBER(header, mode), 0) < 0)
		return -errno;
	if (utimensat(dir_fd, name, times, AT_SYMLINK_NOFOLLOW) < 0)
		return -errno;
	return 0;
}

int zp_unpack(int dir_fd, const struct zp_archive *archive)
{
	const struct zp_ustar *dirs[DIRS_MAX];
	size_t count = 0, at = 0;
	int r = 0;

	while (r == 0 && at + ZP_BLOCK <= archive->size) {
		const struct zp_ustar *header = (const void *)(archive->data + at);
		size_t size = header->type == '0' ? NUMBER(header, size) : 0;

		at += ZP_BLOCK;
		if (!header->name[0])
			break;
		if (size > archive->size - at || count == DIRS_MAX ||
		    header->name[sizeof(header->name) - 1] ||
		    NUMBER(header, checksum) != checksum(header))
			return -EBADMSG;
		r = unpack_entry(dir_fd, header->name, header, archive->data + at);
		if (r == 0 && header->type == '5')
			dirs[count++] = header;
		else if (r == 0)
			r = unpack_metadata(dir_fd, header->name, header);
		at += (size + ZP_BLOCK - 1) / ZP_BLOCK * ZP_BLOCK;
	}
	while (r == 0 && count--)
		r = unpack_metadata(dir_fd, dirs[count]->name, dirs[count]);
	return r;
}
