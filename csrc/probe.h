/* SPDX-License-Identifier: Apache-2.0 */
#ifndef ZP_PROBE_H
#define ZP_PROBE_H

#include <stdbool.h>
#include <stddef.h>

enum zp_verdict {
	ZP_PROBE_MORE, /* cannot tell yet */
	ZP_PROBE_YES,  /* a kubelet's HTTP probe */
	ZP_PROBE_NO,   /* a user */
};

enum zp_verdict zp_probe_classify(const char *bytes, size_t size, size_t limit);
bool zp_probe_is_tls(const char *bytes, size_t size);
extern const char zp_probe_answer[];
extern const size_t zp_probe_answer_size;

#endif
