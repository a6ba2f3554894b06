"""A wake-up put together from client, trace and CRIU's log."""

from __future__ import annotations

import pytest

from benchmarks import client, phases
from benchmarks.trace import Event
from lab import paths

_MS = 1_000_000
_POD = "10.88.0.2"
_LOG = """\
(00.000000) CRIU run id = x
(00.002000) PID: real 300 virt 1
(00.003000)      1: Running post-setup-namespaces scripts of somebody else
(00.004000) Running post-setup-namespaces scripts
(00.009000) Running post-restore scripts
(00.010000) Restore finished successfully. Tasks resumed.
"""
_ANSWER = client.Answer(100 * _MS, 160 * _MS, b"")


def _exec(at_ms: int, pid: int, program: str) -> Event:
    fields = {"filename": str(paths.TOOLS / "bin" / program), "pid": str(pid)}
    return Event(at_ms * _MS, pid, "sched_process_exec", fields)


def _tcp(at_ms: int, state: str, address: str = _POD) -> Event:
    fields = {"saddr": address, "newstate": f"TCP_{state}"}
    return Event(at_ms * _MS, 1, "inet_sock_set_state", fields)


def _fork(at_ms: int, parent: int, child: int) -> Event:
    return Event(at_ms * _MS, parent, "sched_process_fork", {"child_pid": str(child)})


def _wake() -> list[Event]:
    return [
        _tcp(100, "SYN_SENT", "10.88.0.1"),
        _tcp(101, "ESTABLISHED", "10.88.0.1"),
        _tcp(102, "ESTABLISHED"),
        _exec(103, 100, "runc"),
        _exec(110, 199, "criu"),  # asked for its version
        _exec(120, 200, "criu"),
        _fork(130, 200, 299),
        _fork(140, 200, 300),
        _tcp(152, "SYN_SENT"),
        _tcp(153, "ESTABLISHED"),
    ]


def test_moments_of_all_sources_are_on_one_clock() -> None:
    found = phases.moments(_ANSWER, _wake(), _LOG, _POD)
    assert {name: at_ns / _MS for name, at_ns in found.items()} == {
        "request": 100, "accepted": 102, "runc": 103, "criu": 120, "asked": 138, "init": 140,
        "mounted": 142, "restored": 147, "running": 148, "connected": 152, "first byte": 160,
    }  # fmt: skip


def test_phases_add_up_to_the_whole() -> None:
    durations = phases.spent(phases.moments(_ANSWER, _wake(), _LOG, _POD))
    assert list(durations) == [label for _, _, label in phases.BUDGET]
    assert sum(durations.values()) == _ANSWER.took_ns


def test_order_of_the_events_does_not_matter() -> None:
    backwards = list(reversed(_wake()))
    assert phases.moments(_ANSWER, backwards, _LOG, _POD) == phases.moments(
        _ANSWER, _wake(), _LOG, _POD
    )


@pytest.mark.parametrize(
    "missing", [_exec(103, 100, "runc"), _exec(120, 200, "criu"), _fork(140, 200, 300),
                _tcp(152, "SYN_SENT")]
)  # fmt: skip
def test_a_missing_event_is_named(missing: Event) -> None:
    events = [event for event in _wake() if event != missing]
    with pytest.raises(ValueError, match="the trace has no"):
        phases.moments(_ANSWER, events, _LOG, _POD)


@pytest.mark.parametrize("line", [1, 3, 4, 5])
def test_a_missing_line_of_the_log_is_named(line: int) -> None:
    lines = _LOG.splitlines(keepends=True)
    del lines[line]
    with pytest.raises(ValueError, match="CRIU's log"):
        phases.moments(_ANSWER, _wake(), "".join(lines), _POD)


def test_what_was_before_the_request_is_not_taken_for_it() -> None:
    sleep = [_exec(50, 90, "runc"), _exec(60, 91, "criu"), _tcp(70, "SYN_SENT")]
    assert phases.moments(_ANSWER, sleep + _wake(), _LOG, _POD) == phases.moments(
        _ANSWER, _wake(), _LOG, _POD
    )


def test_moments_of_two_wake_ups_are_refused() -> None:
    early = [_tcp(101, "SYN_SENT"), *_wake()]
    with pytest.raises(ValueError, match="out of order"):
        phases.spent(phases.moments(_ANSWER, early, _LOG, _POD))
