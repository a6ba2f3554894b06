"""The latency budget of a wake-up of nginx: where the time to the first byte goes.

Nothing is added to the wake path. Of each two wake-ups, in an order drawn anew, one is not traced
at all: the ratio of the two kinds shows what tracing costs. The moments come from the client, from
the kernel's tracepoints (`trace`: fork, exec, TCP states; same clock as the client's) and from
CRIU's own log, whose seconds since its start are laid over the trace at the fork of the container's
init, which both have. The log is opened before CRIU writes it: its removal after the wake-up does
not matter.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from benchmarks import client, pods, trace
from benchmarks.report import Report, Table
from benchmarks.sample import percentiles, ratio_interval
from benchmarks.trace import Event
from lab import paths, show
from lab.container_images import NGINX
from lab.node import Node
from lab.pods import Pod
from lab.steps import say

ABOUT = "where the time of a wake-up goes, phase by phase"
ROUNDS = 30
_PORT = pods.PORTS[NGINX.name]
_SEED = 1

BUDGET = (
    ("request", "accepted", "handshake with the activator"),
    ("accepted", "runc", "not a probe: vfork and exec of runc"),
    ("runc", "criu", "runc: start, config, CRIU's version"),
    ("criu", "asked", "runc: moves CRIU into the cgroup, asks it to restore"),
    ("asked", "init", "CRIU: kernel features, images read"),
    ("init", "mounted", "CRIU: namespaces and mounts"),
    ("mounted", "restored", "CRIU: files, memory, threads"),
    ("restored", "running", "CRIU: cleans up, lets the processes run"),
    ("running", "connected", "activator: app listens, connect"),
    ("connected", "first byte", "app answers, spliced to the client"),
)
"""From a moment to the next one, and what happens between them."""

_LOG = {
    "mounted": "Running post-setup-namespaces scripts",
    "restored": "Running post-restore scripts",
    "running": "Restore finished successfully. Tasks resumed.",
}
_INIT = re.compile(r"^\((\d+\.\d+)\) PID: real (\d+) virt 1$", re.MULTILINE)


def moments(
    answer: client.Answer, events: Iterable[Event], log: str, address: str
) -> dict[str, int]:
    """The moments of one wake-up, CLOCK_MONOTONIC nanoseconds, from all three sources.

    ``address``: the pod's. ValueError where one of them is missing.
    """
    since = (event for event in events if event.at_ns >= answer.begin_ns)
    seen = sorted(since, key=lambda event: event.at_ns)
    init_offset_ns, init_pid = _init(log)
    init = _first(seen, "fork of init", _forks(init_pid))
    log_begin_ns = init.at_ns - init_offset_ns
    return {
        "request": answer.begin_ns,
        "accepted": _first(seen, "accepted connection", _becomes(address, "ESTABLISHED")).at_ns,
        "runc": _first(seen, "exec of runc", _executes("runc")).at_ns,
        "criu": _first(seen, "exec of criu", _executes("criu", init.pid)).at_ns,
        "asked": log_begin_ns,
        "init": init.at_ns,
        **{name: log_begin_ns + _offset(log, text) for name, text in _LOG.items()},
        "connected": _first(seen, "connect to the app", _becomes(address, "SYN_SENT")).at_ns,
        "first byte": answer.first_byte_ns,
    }


def spent(found: Mapping[str, int]) -> dict[str, int]:
    """Nanoseconds of each phase of ``BUDGET``; they add up to the time to the first byte.

    ValueError where the moments are not in their order: two wake-ups were mixed up.
    """
    durations = {label: found[end] - found[begin] for begin, end, label in BUDGET}
    if backward := [label for label, took_ns in durations.items() if took_ns < 0]:
        raise ValueError(f"moments out of order around {backward[0]!r}: {dict(found)}")
    return durations


def _first(events: Iterable[Event], what: str, wanted: Callable[[Event], bool]) -> Event:
    for event in events:
        if wanted(event):
            return event
    raise ValueError(f"the trace has no {what}")


def _forks(child: int) -> Callable[[Event], bool]:
    return lambda e: e.name == "sched_process_fork" and e.fields["child_pid"] == str(child)


def _executes(program: str, pid: int = 0) -> Callable[[Event], bool]:
    """An exec of one of the lab's tools, by this process if one is given."""
    path = str(paths.TOOLS / "bin" / program)
    return lambda e: (
        e.name == "sched_process_exec" and e.fields["filename"] == path and pid in (0, e.pid)
    )


def _becomes(address: str, state: str) -> Callable[[Event], bool]:
    """A TCP socket whose own address is the pod's enters a state."""
    return lambda e: (
        e.name == "inet_sock_set_state"
        and e.fields["saddr"] == address
        and e.fields["newstate"] == f"TCP_{state}"
    )


def _init(log: str) -> tuple[int, int]:
    """(offset in the log, pid on the machine) of the container's init."""
    match = _INIT.search(log)
    if not match:
        raise ValueError("CRIU's log does not say which process is init")
    return round(float(match[1]) * 1e9), int(match[2])


def _offset(log: str, text: str) -> int:
    """Nanoseconds from the beginning of CRIU's log to the line that says ``text``."""
    match = re.search(rf"^\((\d+\.\d+)\) {re.escape(text)}", log, re.MULTILINE)
    if not match:
        raise ValueError(f"CRIU's log has no {text!r}")
    return round(float(match[1]) * 1e9)


def _wake(pod: Pod, sleep: Path, running: trace.Trace) -> dict[str, int]:
    (attempt,) = (sleep / "work").glob("restore-*")
    with (attempt / "restore.log").open("x+") as log:
        answer = client.get(pod.node, pod.address, _PORT)
        pod.containers[0].wait_awake()
        return moments(answer, running.events(), log.read(), pod.address)


def _table(phases: Mapping[str, list[float]], totals: list[float]) -> Table:
    rows = []
    total = percentiles(totals)[0]
    for label, values in (*phases.items(), ("time to the first byte", totals)):
        p50, p90, *_ = percentiles(values)
        rows.append([label, *map(show.milliseconds, (p50, p90)), f"{p50 / total:.0%}"])
    return Table(["phase", "p50", "p90", "share"], rows)


def run(node: Node, rounds: int) -> Report:
    pods.warm_up(node)
    phases: dict[str, list[float]] = defaultdict(list)
    totals: list[float] = []
    untraced: list[float] = []
    chance = random.Random(_SEED)
    with pods.pod(node, NGINX) as pod, trace.running() as running:
        for number in range(1, rounds + 1):
            for traced in chance.sample((True, False), 2):
                # Before the sleep: both make the kernel wait for grace periods, as a restore does.
                running.switch(traced)
                running.clear()
                sleep = pods.asleep(pod.containers[0])
                if not traced:
                    untraced.append(client.get(node, pod.address, _PORT).took_ns)
                    continue
                found = _wake(pod, sleep, running)
                for label, took_ns in spent(found).items():
                    phases[label].append(took_ns)
                totals.append(found["first byte"] - found["request"])
            say(f"{number}: {show.milliseconds(totals[-1])}")
    low, high = ratio_interval(list(zip(totals, untraced, strict=True)))
    return Report(
        "phases: the latency budget of a wake-up of nginx",
        [_table(phases, totals)],
        chart=[(label, percentiles(values)[0]) for label, values in phases.items()],
        notes=[
            f"n = {rounds}; each phase has its own median, so they add up to the total only nearly",
            f"untraced, in turn with these: p50 {show.milliseconds(percentiles(untraced)[0])}; "
            f"traced / untraced: 95 % interval {low:.2f}–{high:.2f}",
        ],
        samples={
            **{f"{label} (ns)": values for label, values in phases.items()},
            "traced (ns)": totals,
            "untraced (ns)": untraced,
        },
    )
