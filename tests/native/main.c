// SPDX-License-Identifier: Apache-2.0
/*
 * Runs all tests in a network namespace of their own, one that an ordinary user may make too, and
 * counts descriptors around each.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"

static int passed, failed;
static bool good_so_far;

bool zp_check(bool good, const char *what, const char *file, int line)
{
	if (!good) {
		fprintf(stderr, "%s:%d: %s\n", file, line, what);
		good_so_far = false;
	}
	return good;
}

static int count_fds(void)
{
	DIR *folder = opendir("/proc/self/fd");
	int count = 0;

	while (readdir(folder))
		count++;
	closedir(folder);
	return count;
}

void zp_run(const char *name, zp_test test)
{
	int before = count_fds();

	good_so_far = true;
	test();
	if (count_fds() != before && good_so_far) {
		fprintf(stderr, "%s: %d descriptors, %d before\n", name, count_fds(), before);
		good_so_far = false;
	}
	if (good_so_far) {
		passed++;
	} else {
		failed++;
		fprintf(stderr, "FAILED %s\n", name);
	}
}

static bool lo_up(void)
{
	struct ifreq request = {.ifr_flags = IFF_UP | IFF_LOOPBACK | IFF_RUNNING};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	int r;

	strcpy(request.ifr_name, "lo");
	r = ioctl(fd, SIOCSIFFLAGS, &request);
	close(fd);
	return r == 0;
}

int main(void)
{
	if ((unshare(CLONE_NEWNET) < 0 && unshare(CLONE_NEWUSER | CLONE_NEWNET) < 0) || !lo_up()) {
		perror("a network namespace of our own");
		return 1;
	}
	zp_tests_probe();
	zp_tests_pipes();
#ifdef __SANITIZE_THREAD__
	puts("without the tests of spawn: ThreadSanitizer makes a fork of vfork");
#else
	zp_tests_spawn();
#endif
	zp_tests_group();
	zp_tests_conn();
	zp_tests_grpc();
	zp_tests_greeting();
	zp_tests_asked();
	zp_tests_crowd();
	printf("%d passed, %d failed\n", passed, failed);
	return failed ? 1 : 0;
}
