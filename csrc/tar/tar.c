// SPDX-License-Identifier: Apache-2.0
/*
 * A `tar` for CRIU alone, which saves and restores every tmpfs of a container by
 *
 *   tar --create  --gzip ... --directory <dir> .     to stdout
 *   tar --extract --gzip ... --directory <dir>       from stdin
 *
 * In a container these are /dev and masked directories: a few device nodes and links, or nothing.
 * GNU tar and gzip take 4 to 12 ms for each, most of it their start, and a restore has three to six
 * of them in its critical path; this program, statically linked, takes less than one.
 *
 * Whatever is not simple (long names, hard links, a lot of data, arguments that are not known, an
 * archive that the real tar has written) is handed to the real tar, the next one in PATH. What is
 * written here is a gzip file with an ordinary ustar archive in it, so the real tar reads it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ustar.h"

/* Become the next tar in PATH that is not this program. Return: only on failure, -errno. */
static int exec_real(char **argv)
{
	const char *path = getenv("PATH");
	struct stat self, other;
	char file[PATH_MAX];

	if (stat("/proc/self/exe", &self) < 0)
		return -errno;
	while (path && *path) {
		size_t length = strcspn(path, ":");

		snprintf(file, sizeof(file), "%.*s/tar", (int)length, path);
		path += length + (path[length] == ':');
		if (stat(file, &other) < 0 ||
		    (self.st_dev == other.st_dev && self.st_ino == other.st_ino))
			continue;
		execv(file, argv);
	}
	return -ENOENT;
}

/* Whether these are the arguments that CRIU gives; their directory. */
static bool understand(int argc, char **argv, bool *ret_create, const char **ret_dir)
{
	static const char *const known[] = {
		"--gzip",	 "--no-unquote",	   "--no-wildcards", "--one-file-system",
		"--check-links", "--preserve-permissions", "--sparse",	     "--numeric-owner"};
	int i;

	if (argc < 4)
		return false;
	*ret_create = strcmp(argv[1], "--create") == 0;
	*ret_dir = NULL;
	if (!*ret_create && strcmp(argv[1], "--extract") != 0)
		return false;
	for (i = 2; i < argc; i++) {
		size_t k, count = sizeof(known) / sizeof(known[0]);

		if (strcmp(argv[i], "--directory") == 0 && i + 1 < argc) {
			*ret_dir = argv[++i];
			continue;
		}
		if (*ret_create && i == argc - 1 && strcmp(argv[i], ".") == 0)
			continue;
		for (k = 0; k < count && strcmp(argv[i], known[k]) != 0; k++)
			;
		if (k == count)
			return false;
	}
	return *ret_dir != NULL;
}

static int work(bool create, const char *dir)
{
	struct zp_archive archive = {0};
	off_t start = lseek(STDIN_FILENO, 0, SEEK_CUR);
	int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC), r;

	if (fd < 0)
		return -errno;
	if (create) {
		r = zp_pack(fd, &archive);
		return r < 0 ? r : zp_gzip_write(STDOUT_FILENO, &archive);
	}
	if (start < 0)
		return -ENOTSUP;
	r = zp_gzip_read(STDIN_FILENO, &archive);
	if (r == 0)
		r = zp_unpack(fd, &archive);
	if (r == -ENOTSUP && lseek(STDIN_FILENO, start, SEEK_SET) < 0)
		r = -errno;
	return r;
}

int main(int argc, char **argv)
{
	const char *dir;
	bool create;
	int r = -ENOTSUP;

	umask(0);
	if (understand(argc, argv, &create, &dir))
		r = work(create, dir);
	if (r == -ENOTSUP)
		r = exec_real(argv);
	if (r < 0)
		fprintf(stderr, "tar: %s\n", strerror(-r));
	return r < 0 ? 2 : 0;
}
