// SPDX-License-Identifier: Apache-2.0
/*
 * Tells a kubelet's HTTP probe from a user by the first bytes of a request: a request line, then a
 * header line `User-Agent: kube-probe/…`. It looks at bytes that are still in the socket, each time
 * from the beginning, so it has no state and every split of the request gives the same verdict.
 */
#define _GNU_SOURCE
#include "probe.h"

#include <stdbool.h>
#include <string.h>
#include <strings.h>

const char zp_probe_answer[] = "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n";
const size_t zp_probe_answer_size = sizeof(zp_probe_answer) - 1;

static const char agent_name[] = "user-agent";
static const char agent_prefix[] = "kube-probe/";

/* The method's letters, a space, a path: what no other protocol's first line looks like. */
static enum zp_verdict request_line(const char *line, size_t size, bool complete)
{
	size_t i = 0;

	while (i < size && line[i] >= 'A' && line[i] <= 'Z')
		i++;
	if (i == size && !complete)
		return i <= 16 ? ZP_PROBE_MORE : ZP_PROBE_NO;
	if (i == 0 || i > 16 || i == size || line[i] != ' ')
		return ZP_PROBE_NO;
	if (!complete)
		return ZP_PROBE_MORE;
	return memmem(line, size, " HTTP/1.", 8) ? ZP_PROBE_YES : ZP_PROBE_NO;
}

static bool is_probe_agent(const char *line, size_t size)
{
	size_t name = sizeof(agent_name) - 1, prefix = sizeof(agent_prefix) - 1;

	if (size <= name || strncasecmp(line, agent_name, name) != 0 || line[name] != ':')
		return false;
	line += name + 1;
	size -= name + 1;
	while (size && (*line == ' ' || *line == '\t')) {
		line++;
		size--;
	}
	return size >= prefix && memcmp(line, agent_prefix, prefix) == 0;
}

static bool is_agent(const char *line, size_t size)
{
	size_t name = sizeof(agent_name) - 1;

	return size > name && strncasecmp(line, agent_name, name) == 0 && line[name] == ':';
}

/* zp_probe_is_tls() - a handshake record of any version. */
bool zp_probe_is_tls(const char *bytes, size_t size)
{
	return size >= 2 && bytes[0] == 0x16 && bytes[1] == 3;
}

/*
 * zp_probe_classify() - what the first bytes of a connection are
 * @bytes: what has arrived
 * @limit: how many bytes may be read before an undecided request is a user's
 */
enum zp_verdict zp_probe_classify(const char *bytes, size_t size, size_t limit)
{
	const char *end = bytes + size, *line = bytes, *newline;
	enum zp_verdict verdict;
	size_t length;

	newline = memchr(line, '\n', size);
	verdict = request_line(line, newline ? (size_t)(newline - line) : size, newline != NULL);
	if (verdict == ZP_PROBE_NO)
		return ZP_PROBE_NO;
	while (newline) {
		line = newline + 1;
		newline = memchr(line, '\n', (size_t)(end - line));
		if (!newline)
			break;
		length = (size_t)(newline - line);
		if (length && line[length - 1] == '\r')
			length--;
		if (length == 0)
			return ZP_PROBE_NO; /* the header ends: no such agent */
		if (is_agent(line, length))
			return is_probe_agent(line, length) ? ZP_PROBE_YES : ZP_PROBE_NO;
	}
	return size >= limit ? ZP_PROBE_NO : ZP_PROBE_MORE;
}
