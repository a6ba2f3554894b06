/* SPDX-License-Identifier: Apache-2.0 */
#ifndef ZP_PROBE_H
#define ZP_PROBE_H

#include <stddef.h>

#include "activator.h"

enum zp_verdict {
	ZP_PROBE_MORE, /* cannot tell yet */
	ZP_PROBE_YES,  /* a kubelet's HTTP probe */
	ZP_PROBE_NO,   /* a user */
};

enum zp_verdict zp_probe_classify(const char *bytes, size_t size, size_t limit);
enum zp_unread zp_probe_unread(const char *bytes, size_t size);
extern const char zp_probe_answer[];
extern const size_t zp_probe_answer_size;

#endif
