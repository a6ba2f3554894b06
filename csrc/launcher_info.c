// SPDX-License-Identifier: Apache-2.0
/*
 * `-info`: options in, containerd.types.RuntimeInfo out, both protobuf.
 *
 * The options on stdin are an Any; it is passed back as it came. What is needed of it is the name
 * of the OCI runtime, whose `features` document becomes the answer's features. Both kinds of
 * options are understood: containerd.runc.v1.Options (field 6) and runtimeoptions.v1.Options with
 * TOML in config_body (field 3). A runtime that does not know `features` leaves them out.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "launcher.h"

#define FEATURES_TYPE	 "types.containerd.io/opencontainers/runtime-spec/1/features/Features"
#define FEATURES_MAX	 (1u << 20)
#define FEATURES_SECONDS 5

struct bytes {
	const char *at;
	size_t size;
};

static int varint_read(struct bytes *in, uint64_t *ret_value)
{
	uint64_t value = 0;

	for (int shift = 0; shift < 64 && in->size; shift += 7) {
		unsigned char byte = *in->at++;

		in->size--;
		value |= (uint64_t)(byte & 0x7f) << shift;
		if (!(byte & 0x80)) {
			*ret_value = value;
			return 0;
		}
	}
	return -EBADMSG;
}

/* The last length-delimited field @number of a message. Return: 0, -ENOENT, -EBADMSG. */
static int field_find(struct bytes in, unsigned int number, struct bytes *ret_field)
{
	static const size_t fixed[] = {[1] = 8, [5] = 4};
	int found = -ENOENT;

	while (in.size) {
		uint64_t key, size;

		if (varint_read(&in, &key) < 0)
			return -EBADMSG;
		switch (key & 7) {
		case 0:
			if (varint_read(&in, &size) < 0)
				return -EBADMSG;
			continue;
		case 1:
		case 5:
			size = fixed[key & 7];
			break;
		case 2:
			if (varint_read(&in, &size) < 0)
				return -EBADMSG;
			break;
		default:
			return -EBADMSG;
		}
		if (size > in.size)
			return -EBADMSG;
		if (key == (((uint64_t)number << 3) | 2)) {
			ret_field->at = in.at;
			ret_field->size = size;
			found = 0;
		}
		in.at += size;
		in.size -= size;
	}
	return found;
}

/* BinaryName = "…" in TOML; a line is all that has to be understood here. */
static int toml_binary_name(struct bytes text, struct bytes *ret_name)
{
	static const char key[] = "BinaryName";

	while (text.size) {
		const char *end = memchr(text.at, '\n', text.size);
		size_t size = end ? (size_t)(end - text.at) : text.size, at = 0;
		const char *line = text.at, *close;

		text.at += end ? size + 1 : size;
		text.size -= end ? size + 1 : size;
		while (at < size && isspace((unsigned char)line[at]))
			at++;
		if (size - at < sizeof(key) || memcmp(line + at, key, sizeof(key) - 1))
			continue;
		at += sizeof(key) - 1;
		while (at < size && (isspace((unsigned char)line[at]) || line[at] == '='))
			at++;
		if (at >= size || (line[at] != '"' && line[at] != '\''))
			continue;
		close = memchr(line + at + 1, line[at], size - at - 1);
		if (!close)
			continue;
		ret_name->at = line + at + 1;
		ret_name->size = close - ret_name->at;
		return 0;
	}
	return -ENOENT;
}

static void binary_name(struct bytes any, char *ret_name, size_t room)
{
	struct bytes type, options, name = {"runc", 4}, found;

	if (field_find(any, 1, &type) == 0 && field_find(any, 2, &options) == 0) {
		if (memmem(type.at, type.size, "runtimeoptions", 14)) {
			if (field_find(options, 3, &found) == 0 &&
			    toml_binary_name(found, &found) == 0)
				name = found;
		} else if (field_find(options, 6, &found) == 0 && found.size) {
			name = found;
		}
	}
	snprintf(ret_name, room, "%.*s", (int)name.size, name.at);
}

static int features_read(const char *binary, char **ret_data, size_t *ret_size)
{
	char *argv[] = {(char *)binary, "features", NULL};
	_cleanup_fd_ int out = -1, in = -1;
	posix_spawn_file_actions_t actions;
	_cleanup_fd_ int process = -1;
	int pipes[2], status, error;
	long long deadline_ms;
	pid_t pid;

	if (pipe2(pipes, O_CLOEXEC) < 0)
		return -errno;
	out = pipes[0];
	in = pipes[1];
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
	posix_spawn_file_actions_adddup2(&actions, in, 1);
	posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0);
	error = posix_spawnp(&pid, binary, &actions, NULL, argv, environ);
	posix_spawn_file_actions_destroy(&actions);
	if (error)
		return -error;
	zp_fd_deinit(&in);
	process = syscall(SYS_pidfd_open, pid, 0);
	deadline_ms = zp_now_ms() + FEATURES_SECONDS * 1000;
	error = zp_read_all(out, FEATURES_MAX, deadline_ms, ret_data, ret_size);
	/* The document is whole, the runtime may still hang. */
	if (error || process < 0 || zp_readable_wait(process, deadline_ms) < 0)
		kill(pid, SIGKILL);
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	if (!error && (status || !*ret_size || **ret_data != '{')) {
		free(*ret_data);
		error = -ENOSYS;
	}
	return error;
}

static size_t varint_size(uint64_t value)
{
	size_t size = 1;

	while (value >>= 7)
		size++;
	return size;
}

static void varint_write(FILE *out, uint64_t value)
{
	for (; value >= 0x80; value >>= 7)
		fputc((value & 0x7f) | 0x80, out);
	fputc(value, out);
}

static size_t field_size(size_t size)
{
	return 1 + varint_size(size) + size;
}

static void field_write(FILE *out, unsigned int number, const char *data, size_t size)
{
	fputc((number << 3) | 2, out);
	varint_write(out, size);
	if (data)
		fwrite(data, 1, size, out);
}

/* Return: the exit code of `-info`. */
int zp_info_print(void)
{
	char *input = NULL, *features = NULL, name[PATH_MAX];
	size_t input_size = 0, features_bytes = 0;
	int error = zp_read_all(STDIN_FILENO, ZP_STDIN_MAX, ZP_FOREVER, &input, &input_size);

	if (error < 0 && error != -EBADF) {
		fprintf(stderr, ZP_NAME ": cannot read the options: %s\n", strerror(-error));
		return 1;
	}
	binary_name((struct bytes){input, input_size}, name, sizeof(name));
	error = features_read(name, &features, &features_bytes);
	if (error == -ENOENT || error == -EACCES) {
		fprintf(stderr, ZP_NAME ": the OCI runtime %s cannot be executed: %s\n", name,
			strerror(-error));
		return 1;
	}
	field_write(stdout, 1, ZP_RUNTIME, strlen(ZP_RUNTIME));
	field_write(stdout, 2, NULL,
		    field_size(strlen(ZP_VERSION)) + field_size(strlen(ZP_BUILD_ID)));
	field_write(stdout, 1, ZP_VERSION, strlen(ZP_VERSION));
	field_write(stdout, 2, ZP_BUILD_ID, strlen(ZP_BUILD_ID));
	if (input_size)
		field_write(stdout, 3, input, input_size);
	if (!error) {
		field_write(stdout, 4, NULL,
			    field_size(strlen(FEATURES_TYPE)) + field_size(features_bytes));
		field_write(stdout, 1, FEATURES_TYPE, strlen(FEATURES_TYPE));
		field_write(stdout, 2, features, features_bytes);
		free(features);
	}
	free(input);
	return fflush(stdout) ? 1 : 0;
}
