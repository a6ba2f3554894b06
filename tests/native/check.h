/* SPDX-License-Identifier: Apache-2.0 */
/* A test is a function; a CHECK that fails is told and ends it. */
#ifndef ZP_CHECK_H
#define ZP_CHECK_H

#include <stdbool.h>
#include <stdint.h>

#include "activator.h"

bool zp_check(bool good, const char *what, const char *file, int line);
#define CHECK(condition)                                                                           \
	do {                                                                                       \
		if (!zp_check(condition, #condition, __FILE__, __LINE__))                          \
			return;                                                                    \
	} while (0)

typedef void (*zp_test)(void);
void zp_run(const char *name, zp_test test);
#define RUN(test) zp_run(#test, test)

void zp_tests_probe(void);
void zp_tests_pipes(void);
void zp_tests_spawn(void);
void zp_tests_group(void);
void zp_tests_conn(void);
void zp_tests_grpc(void);
void zp_tests_greeting(void);
void zp_tests_asked(void);
void zp_tests_crowd(void);

/* fixture.c: an activator of this process's namespace over a redirector that only notes. */
#define APP_PORT 18080
struct zp_activator *zp_fixture_open(void);
struct zp_group_options zp_fixture_options(void);
struct zp_plan *zp_fixture_plan(const char *script, const char *ready_path);
int zp_fixture_listen(uint16_t port, int backlog);
int zp_fixture_connect(uint16_t port);
bool zp_fixture_wait(struct zp_activator *activator, int kind, struct zp_event *ret_event);
void zp_fixture_say(int fd, const char *text);
bool zp_fixture_hear(int fd, const char *text);
bool zp_fixture_reset(int fd);

/* fake_redirector.c: the activator's port behind an app's, and whether its redirect is on. */
uint16_t zp_fake_activator_port(uint16_t port);
bool zp_fake_asleep(uint16_t port);
void zp_fake_park(uint16_t port); /* a SYN of it lies in the ring */
/* as does a segment from the node, awake */
void zp_fake_ask(uint16_t port, uint16_t from, uint8_t kind, const char *bytes, size_t size);

#endif
