from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from zeropod._fastpath._command cimport Command, zp_command

import errno
import os
import socket
import warnings
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

cdef extern from "restore.h":
    cdef struct zp_plan:
        pass
    int zp_plan_new(const zp_command *command, const char *ready_path, zp_plan **ret_plan) nogil
    void zp_plan_unref(zp_plan *plan) nogil

cdef extern from "../bpf/redirector.h":
    enum:
        ZP_MAX_IGNORED
    cdef struct zp_network:
        uint32_t bits
        uint8_t address[16]

cdef extern from "activator.h":
    cdef struct zp_activator:
        pass
    cdef struct zp_event:
        int kind
        int group
        int64_t pid
        uint64_t at_ns
        int64_t value
    cdef enum zp_activation:
        pass
    cdef struct zp_wake_port:
        uint16_t number
        uint8_t protocol
    cdef struct zp_group_options:
        zp_activation activation
        bint probe_detection
        uint32_t probe_buffer_size
        uint64_t connect_timeout_ns
        uint64_t proxy_timeout_ns
    cdef struct zp_group_stats:
        uint64_t held, spliced, parked, connections, probes, wakes, refused
        uint64_t probes_awake, tls_wakes, bare_wakes
    cdef struct zp_activator_options:
        bint count_loopback
        bint udp
        bint force_clsact
        const zp_network *ignored
        size_t ignored_count
    int zp_activator_new(int netns_fd, const char *bpf_object,
                         const zp_activator_options *options, zp_activator **ret,
                         const char **ret_step) nogil
    void zp_activator_free(zp_activator *activator) nogil
    int zp_activator_event_fd(const zp_activator *activator)
    size_t zp_activator_events(zp_activator *activator, zp_event *events, size_t room) nogil
    int zp_activator_counter(zp_activator *activator, unsigned int which, uint64_t *ret) nogil
    int zp_group_add(zp_activator *activator, const zp_wake_port *ports, size_t count,
                     const zp_group_options *options, int *ret_group) nogil
    int zp_group_remove(zp_activator *activator, int group) nogil
    int zp_group_hold(zp_activator *activator, int group) nogil
    int zp_group_arm(zp_activator *activator, int group, zp_plan *plan) nogil
    int zp_group_wake(zp_activator *activator, int group) nogil
    int zp_group_disarm(zp_activator *activator, int group) nogil
    int zp_group_awake(zp_activator *activator, int group) nogil
    int zp_group_drop(zp_activator *activator, int group) nogil
    int zp_group_keep(zp_activator *activator, int group, const int *fds, size_t count) nogil
    int zp_group_last_activity(zp_activator *activator, int group, uint64_t *ret_ns) nogil
    int zp_group_last_undecided(zp_activator *activator, int group, uint64_t *ret_ns) nogil
    cdef struct zp_port_view:
        uint64_t last_activity_ns
        uint8_t remote[16]
        uint16_t remote_port
        uint16_t number
        uint8_t protocol
        uint8_t mode
        bint of_node
        int unread
    int zp_group_view(zp_activator *activator, int group, zp_port_view *views,
                      size_t *ret_count) nogil
    int zp_group_stats_of "zp_group_stats"(zp_activator *activator, int group,
                                           zp_group_stats *ret_stats) nogil

cdef extern from "interfaces.h":
    enum:
        ZP_MAX_INTERFACES
    int zp_interfaces_clear(int netns_fd) nogil

cdef bytes _OBJECT = os.fsencode(Path(__file__).with_name("redirector.bpf.o"))
_COUNTERS = (
    "redirected",
    "flow_in",
    "flow_out",
    "error_in",
    "flow_forgotten",
    "parked",
    "parked_full",
    "flows_full",
    "direct_dropped",
    "fragment",
    "malformed",
    "unknown_header",
    "vlan",
    "asked",
    "ignored",
    "forwarded",
    "rewrite_failed",
)


class EventKind(IntEnum):
    FIRED = 1
    FIRE_FAILED = 2
    READY = 3
    CONNECT_TIMEOUT = 4
    PENDING = 5
    FIRST_BYTE = 6


class Cause(IntEnum):
    CONNECTION = 1
    REQUEST = 2
    TLS = 3


class Activation(IntEnum):
    AUTO = 0
    PARK = 1
    SPLICE = 2


class Mode(IntEnum):
    PASS = 0
    REDIRECT = 1
    PARK = 2
    PARK_ALL = 3


class Unread(IntEnum):
    NO = 0
    TLS = 1
    HTTP2 = 2


class PortView(NamedTuple):
    number: int
    udp: bool
    mode: Mode
    last_activity_ns: int
    remote: bytes
    remote_port: int
    of_node: bool
    unread: Unread


class Event(NamedTuple):
    kind: EventKind
    group: int
    pid: int
    at_ns: int
    value: int


cdef int check(int r) except -1:
    if r < 0:
        raise OSError(-r, os.strerror(-r))
    return r


def clear_filters(int netns_fd):
    cdef int r
    with nogil:
        r = zp_interfaces_clear(netns_fd)
    check(r)


cdef class RestorePlan:
    cdef zp_plan *_plan

    def __init__(self, argv, *, env, cwd="/", stdio=(-1, -1, -1), setns=(),
                 ready_path=None):
        cdef Command command = Command(argv, env, cwd, stdio, setns)
        cdef const char *c_path = NULL
        if self._plan != NULL:
            raise RuntimeError("made already")
        if ready_path is not None:
            encoded = os.fsencode(ready_path)
            c_path = encoded
        check(zp_plan_new(&command.c, c_path, &self._plan))

    def close(self):
        zp_plan_unref(self._plan)
        self._plan = NULL

    def __dealloc__(self):
        if self._plan != NULL:
            zp_plan_unref(self._plan)
            warnings.warn("a RestorePlan was not closed", ResourceWarning)


cdef class Activator:
    cdef zp_activator *_activator

    def __init__(self, int netns_fd, *, bint count_loopback, bint udp=False,
                 bint force_clsact=False, ignored=()):
        cdef zp_activator_options options
        cdef zp_network networks[256]
        cdef const char *step = NULL
        cdef const char *path = _OBJECT
        cdef int r
        if self._activator != NULL:
            raise RuntimeError("made already")
        options.count_loopback = count_loopback
        options.udp = udp
        options.force_clsact = force_clsact
        options.ignored = networks
        options.ignored_count = len(ignored)
        if len(ignored) > ZP_MAX_IGNORED:
            raise ValueError(f"more than {ZP_MAX_IGNORED} networks")
        for i, (address, bits) in enumerate(ignored):
            networks[i].bits = bits
            for at in range(16):
                networks[i].address[at] = address[at]
        with nogil:
            r = zp_activator_new(netns_fd, path, &options, &self._activator, &step)
        if r < 0:
            raise OSError(-r, f"{step.decode()}: {os.strerror(-r)}")

    cdef zp_activator *_open(self) except NULL:
        if self._activator == NULL:
            raise ValueError("the activator is closed")
        return self._activator

    def fileno(self):
        return zp_activator_event_fd(self._open())

    def events(self):
        cdef zp_event events[64]
        cdef zp_activator *activator = self._open()
        cdef size_t count, i
        with nogil:
            count = zp_activator_events(activator, events, 64)
        return [
            Event(EventKind(events[i].kind), events[i].group, events[i].pid, events[i].at_ns,
                  events[i].value)
            for i in range(count)
        ]

    def add_group(self, ports, *, udp_ports=(), activation=Activation.AUTO,
                  bint probe_detection, int probe_buffer_size, uint64_t connect_timeout_ns,
                  uint64_t proxy_timeout_ns):
        cdef zp_activator *activator = self._open()
        cdef zp_wake_port wake_ports[64]
        cdef zp_group_options options
        cdef size_t count = len(ports) + len(udp_ports)
        cdef int group = -1
        cdef int r
        if count > 64:
            raise ValueError("more than 64 ports")
        for i, number in enumerate((*ports, *udp_ports)):
            wake_ports[i].number = number
            wake_ports[i].protocol = socket.IPPROTO_TCP if i < len(ports) else socket.IPPROTO_UDP
        options.activation = <zp_activation><int>activation
        options.probe_detection = probe_detection
        options.probe_buffer_size = probe_buffer_size
        options.connect_timeout_ns = connect_timeout_ns
        options.proxy_timeout_ns = proxy_timeout_ns
        with nogil:
            r = zp_group_add(activator, wake_ports, count, &options, &group)
        check(r)
        return group

    def remove_group(self, int group):
        check(zp_group_remove(self._open(), group))

    def hold(self, int group):
        cdef zp_activator *activator = self._open()
        cdef int r
        with nogil:
            r = zp_group_hold(activator, group)
        if r == -errno.E2BIG:
            raise OSError(-r, f"the pod has more than {ZP_MAX_INTERFACES} network interfaces")
        check(r)

    def arm(self, int group, RestorePlan plan not None):
        cdef zp_activator *activator = self._open()
        cdef int r
        if plan._plan == NULL:
            raise ValueError("the plan is closed")
        with nogil:
            r = zp_group_arm(activator, group, plan._plan)
        return check(r) == 1

    def wake(self, int group):
        cdef zp_activator *activator = self._open()
        cdef int r
        with nogil:
            r = zp_group_wake(activator, group)
        return check(r) == 1

    def disarm(self, int group):
        return check(zp_group_disarm(self._open(), group)) == 1

    def awake(self, int group):
        check(zp_group_awake(self._open(), group))

    def drop(self, int group):
        cdef zp_activator *activator = self._open()
        cdef int r
        with nogil:
            r = zp_group_drop(activator, group)
        check(r)

    def keep(self, int group, fds):
        cdef int copies[64]
        cdef size_t count = len(fds)
        if count > 64:
            raise ValueError("more than 64 sockets")
        for i, fd in enumerate(fds):
            copies[i] = fd
        check(zp_group_keep(self._open(), group, copies, count))

    def last_activity_ns(self, int group):
        cdef uint64_t ns = 0
        check(zp_group_last_activity(self._open(), group, &ns))
        return ns

    def last_undecided_ns(self, int group):
        cdef uint64_t ns = 0
        check(zp_group_last_undecided(self._open(), group, &ns))
        return ns

    def stats(self, int group):
        cdef zp_group_stats stats
        check(zp_group_stats_of(self._open(), group, &stats))
        return {
            "held": stats.held,
            "spliced": stats.spliced,
            "parked": stats.parked,
            "connections": stats.connections,
            "probes": stats.probes,
            "wakes": stats.wakes,
            "refused": stats.refused,
            "probes_awake": stats.probes_awake,
            "tls_wakes": stats.tls_wakes,
            "bare_wakes": stats.bare_wakes,
        }

    def view(self, int group):
        cdef zp_port_view views[64]
        cdef zp_activator *activator = self._open()
        cdef size_t count = 0, i
        check(zp_group_view(activator, group, views, &count))
        return [
            PortView(
                views[i].number,
                views[i].protocol == socket.IPPROTO_UDP,
                Mode(views[i].mode),
                views[i].last_activity_ns,
                (<char *>views[i].remote)[:16],
                views[i].remote_port,
                bool(views[i].of_node),
                Unread(views[i].unread),
            )
            for i in range(count)
        ]

    def counters(self):
        cdef uint64_t value = 0
        result = {}
        for which, name in enumerate(_COUNTERS):
            check(zp_activator_counter(self._open(), which, &value))
            result[name] = value
        return result

    def close(self):
        cdef zp_activator *activator = self._activator
        self._activator = NULL
        if activator != NULL:
            with nogil:
                zp_activator_free(activator)

    def __dealloc__(self):
        if self._activator != NULL:
            warnings.warn("an Activator was not closed", ResourceWarning)
            zp_activator_free(self._activator)
