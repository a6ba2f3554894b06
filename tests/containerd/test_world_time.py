"""What time a container finds after a sleep of a minute.

CRIU restores it into a time namespace where CLOCK_MONOTONIC and CLOCK_BOOTTIME go on from where
they stood; CLOCK_REALTIME has gone on. What was to end after a while, or at a moment of the
monotonic clock, ends that much later; a wait for a moment of the day that has passed ends at once.
"""

from __future__ import annotations

import time

from lab import waiting

from .conftest import MakePod
from .worldly import Told

ASLEEP_S = 60
LONG_S, SHORT_S = 600, 20
OFF_S = 15  # far less than the sleep, far more than a busy machine adds

SET = f"""
import ctypes, os, signal, struct, threading, time
LONG, SHORT = {LONG_S}, {SHORT_S}
libc = ctypes.CDLL(None, use_errno=True)
REALTIME, MONOTONIC, ABSOLUTE = 0, 1, 1
fired = {{}}
def fire(name):
    fired.setdefault(name, time.monotonic() - began)

class timespec(ctypes.Structure):
    _fields_ = [("sec", ctypes.c_long), ("nsec", ctypes.c_long)]
class itimerspec(ctypes.Structure):
    _fields_ = [("interval", timespec), ("value", timespec)]
def moment(seconds):
    return timespec(int(seconds), int(seconds % 1 * 1e9))
def check(result):
    assert result >= 0, os.strerror(ctypes.get_errno())
    return result

def timerfd(clock, seconds, flags=0):
    made = check(libc.timerfd_create(clock, 0))
    value = itimerspec(timespec(), moment(seconds))
    check(libc.timerfd_settime(made, flags, ctypes.byref(value), None))
    return made
def timerfd_left(fd):
    left = itimerspec()
    check(libc.timerfd_gettime(fd, ctypes.byref(left)))
    return left.value.sec + left.value.nsec / 1e9
def timer(clock, seconds, signo):
    event = ctypes.create_string_buffer(64)
    struct.pack_into("=Qii", event, 0, 0, signo, 0)
    made = ctypes.c_void_p()
    check(libc.timer_create(clock, event, ctypes.byref(made)))
    value = itimerspec(timespec(), moment(seconds))
    check(libc.timer_settime(made, 0, ctypes.byref(value), None))
    return made
def timer_left(made):
    left = itimerspec()
    check(libc.timer_gettime(made, ctypes.byref(left)))
    return left.value.sec + left.value.nsec / 1e9
def in_thread(name, wait):
    def run():
        result = wait()
        fire(name)
        results[name] = result
    threading.Thread(target=run, daemon=True).start()
results = {{}}
libc.clock_nanosleep.restype = libc.nanosleep.restype = ctypes.c_int

began, began_day, began_boot = (
    time.clock_gettime(clock) for clock in (time.CLOCK_MONOTONIC, REALTIME, time.CLOCK_BOOTTIME)
)
timers = {{
    "timerfd, monotonic": timerfd(MONOTONIC, LONG),
    "timerfd, monotonic, absolute": timerfd(MONOTONIC, began + LONG, ABSOLUTE),
    "timerfd, realtime": timerfd(REALTIME, LONG),
    "timerfd, realtime, absolute": timerfd(REALTIME, began_day + LONG, ABSOLUTE),
}}
posix = {{
    "timer, monotonic": timer(MONOTONIC, LONG, signal.SIGRTMIN),
    "timer, realtime": timer(REALTIME, LONG, signal.SIGRTMIN),
}}
signal.setitimer(signal.ITIMER_REAL, LONG)
def lefts():
    found = {{name: timerfd_left(fd) for name, fd in timers.items()}}
    found |= {{name: timer_left(made) for name, made in posix.items()}}
    found["setitimer"] = signal.getitimer(signal.ITIMER_REAL)[0]
    return found

short = timerfd(MONOTONIC, SHORT)
in_thread("timerfd", lambda: os.read(short, 8))
in_thread("sleep", lambda: time.sleep(SHORT))
in_thread("nanosleep", lambda: libc.nanosleep(ctypes.byref(moment(SHORT)), None))
in_thread("event", lambda: threading.Event().wait(SHORT))
in_thread("to a moment of the day", lambda: libc.clock_nanosleep(
    REALTIME, ABSOLUTE, ctypes.byref(moment(began_day + SHORT)), None))

class Condition:
    # pthread_cond_timedwait with the default clock, CLOCK_REALTIME
    def __init__(self):
        self.mutex, self.condition = (ctypes.create_string_buffer(64) for _ in range(2))
    def wait(self, seconds):
        deadline = moment(time.time() + seconds)
        libc.pthread_mutex_lock(self.mutex)
        while True:  # woken for nothing, it waits again, as everybody must
            result = libc.pthread_cond_timedwait(
                self.condition, self.mutex, ctypes.byref(deadline))
            if result:
                return result
condition = Condition()
in_thread("condition, realtime", lambda: condition.wait(SHORT))

def clocks():
    return [time.clock_gettime(clock) - then for clock, then in (
        (time.CLOCK_MONOTONIC, began), (REALTIME, began_day), (time.CLOCK_BOOTTIME, began_boot))]
"""
LATER = {"timerfd", "sleep", "event"}
"""End when the container has been awake for as long as they were to last."""
AT_ONCE = {"to a moment of the day", "condition, realtime"}
"""End at the wake-up, for their moment has passed."""


def test_a_minute_passes(no_leaks: None, make_pod: MakePod) -> None:
    app = Told(make_pod)
    app.do(SET)
    app.sleep()
    end = time.monotonic() + ASLEEP_S
    waiting.until("end of the minute", lambda: time.monotonic() > end, ASLEEP_S + 60)
    monotonic, day, boot, fired, lefts = app.do("*clocks(), dict(fired), lefts()")
    slept = day - monotonic
    assert slept > ASLEEP_S - OFF_S
    assert abs(boot - monotonic) < OFF_S
    assert not LATER & fired.keys()
    for name, left in lefts.items():
        assert abs(left - (LONG_S - monotonic)) < OFF_S, (name, lefts, monotonic)

    def over() -> dict[str, float] | None:
        found: dict[str, float] = app.do("dict(fired)")
        return found if (LATER | AT_ONCE | {"nanosleep"}) <= found.keys() else None

    fired = waiting.until("end of every wait", over, 2 * SHORT_S + 60, interval=0.2)
    for name in LATER:
        assert SHORT_S - 1 < fired[name] < SHORT_S + OFF_S, (name, fired)
    for name in AT_ONCE:
        assert fired[name] < SHORT_S - 1, (name, fired)
