/* SPDX-License-Identifier: Apache-2.0 */
/* HTTP/2, as clients say it. */
#ifndef ZP_H2_H
#define ZP_H2_H

#define PREFACE	  "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
#define SETTINGS  "\0\0\x06\4\0\0\0\0\0\0\4\0\1\0\0"
#define ACK	  "\0\0\0\4\1\0\0\0\0"
#define WINDOW	  "\0\0\4\x08\0\0\0\0\0\0\1\0\0"
#define PING	  "\0\0\x08\6\0\0\0\0\0abcdefgh"
#define GREASE	  "\0\0\3\x7a\xff\x80\0\0\1xyz"
#define PATH	  "/grpc.health.v1.Health/Check"
#define CODED	  "\x62\x6b\x2b\x22\xf3\x94\x74\x26\x75\xfb\x85\x7c\x65\x1d\x09\x9d\x8b\xd3\x94\x9d\x7f"
#define GRPC_TYPE "\x5f\x8b\x1d\x75\xd0\x62\x0d\x26\x3d\x4c\x4d\x65\x64"

/* What grpc-go's encoder makes of a kubelet's call: all in Huffman's code, and indexed. */
#define CALL                                                                                       \
	"\x83\x86\x44\x95" CODED "\x41\x8a\x08\x17\x7d\x70\x2e\x2b\x8f\x01\xe0\x7f" GRPC_TYPE      \
	"\x7a\x96\xeb\x6c\x65\x5a\xbb\x0f\x19\x58\x0a\xec\x85\x49\xac\xac\x8b\x4c\x76\x02\xbb\x8d" \
	"\xae\x0f\x40\x82\x49\x7f\x86\x4d\x83\x35\x05\xb1\x1f\x40\x89\x9a\xca\xc8\xb2\x4d\x49\x4f" \
	"\x6a\x7f\x83\x7d\xf7\xa9"

#endif
