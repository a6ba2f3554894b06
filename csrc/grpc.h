/* SPDX-License-Identifier: Apache-2.0 */
#ifndef ZP_GRPC_H
#define ZP_GRPC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "probe.h"

#define ZP_H2_PREFACE	   24
#define ZP_H2_HEAD	   9 /* of a frame */
#define ZP_GRPC_ANSWER_MAX 104

struct zp_grpc {
	uint32_t stream; /* of a call: where it is answered */
	bool waits;	 /* undecided, and what has come ends with a frame: its client may wait */
};

bool zp_h2_begins(const char *bytes, size_t size);
bool zp_h2_is_ack(const uint8_t head[ZP_H2_HEAD]);
size_t zp_h2_frame(const uint8_t head[ZP_H2_HEAD]);
enum zp_verdict zp_grpc_classify(const char *bytes, size_t size, struct zp_grpc *ret_grpc);
enum zp_verdict zp_grpc_go_on(const char *bytes, size_t size, struct zp_grpc *ret_grpc);
size_t zp_grpc_answer(uint32_t stream, bool greeted, char answer[ZP_GRPC_ANSWER_MAX]);

extern const char zp_h2_settings[ZP_H2_HEAD];

#endif
