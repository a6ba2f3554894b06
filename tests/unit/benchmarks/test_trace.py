"""What the kernel writes into a trace file, as events."""

from __future__ import annotations

import pytest

from benchmarks import trace

_TEXT = """\
# tracer: nop
#           TASK-PID     CPU#  |||||  TIMESTAMP  FUNCTION
            runc-30841   [001] .....  2233.673261: sched_process_exec: filename=/bin/runc pid=30841
 containerd-shim-3384    [000] ..s2.  2233.000007: sched_process_fork: comm=a b pid=3 child_pid=4
"""


def test_events_are_in_the_order_of_their_time() -> None:
    fork, execution = trace.parse(_TEXT)
    assert (fork.at_ns, fork.pid, fork.name) == (2_233_000_007_000, 3384, "sched_process_fork")
    assert fork.fields["child_pid"] == "4"
    assert (execution.at_ns, execution.pid) == (2_233_673_261_000, 30841)
    assert execution.fields["filename"] == "/bin/runc"


def test_a_trace_with_a_hole_is_refused() -> None:
    with pytest.raises(ValueError, match="not whole"):
        trace.parse(_TEXT + "CPU:1 [LOST 17 EVENTS]\n")


def test_an_empty_trace_has_no_events() -> None:
    assert trace.parse("# tracer: nop\n") == []
