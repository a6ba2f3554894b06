/* SPDX-License-Identifier: Apache-2.0 */
/* Packets that are held until the app is there, and how they are put back. */
#ifndef ZP_PARK_H
#define ZP_PARK_H

#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>

#include "../bpf/redirector.h"

struct zp_activator;
struct zp_group;
struct zp_port_entry;

#define ZP_MAX_PARKED	    2048
#define ZP_MAX_PARKED_BYTES (2 * 1024 * 1024)

struct zp_frame {
	TAILQ_ENTRY(zp_frame) link;
	struct zp_port_entry *port;
	struct zp_parked head; /* and its frame */
};

struct zp_park {
	TAILQ_HEAD(zp_frames, zp_frame) frames; /* the oldest first */
	size_t count, bytes;
	int packet_fd, raw_fd, raw6_fd; /* made for the first frame; -EBADF: not yet */
	int snmp_fd;
	struct zp_flow probe; /* the last connection that was found to be one */
};

void zp_park_init(struct zp_park *park);
void zp_park_deinit(struct zp_park *park);
int zp_park_note(struct zp_activator *activator, const struct zp_parked *parked, size_t size);
size_t zp_park_count(struct zp_activator *activator, const struct zp_port_entry *port);
size_t zp_park_return(struct zp_activator *activator, const struct zp_port_entry *port,
		      size_t room);
void zp_park_finish_checksum(struct zp_parked *parked);
int zp_park_passive_opens(struct zp_activator *activator, uint64_t *ret_opens);

#endif
