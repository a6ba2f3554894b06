/* SPDX-License-Identifier: Apache-2.0 */
#ifndef ZP_ADDRESSES_H
#define ZP_ADDRESSES_H

#include <stddef.h>
#include <stdint.h>

int zp_addresses_watch(int *ret_fd);
void zp_addresses_drain(int fd);
int zp_addresses_read(uint8_t (*addresses)[16], size_t room, size_t *ret_count);

#endif
