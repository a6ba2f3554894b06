"""Stats: each figure in the field where containerd's readers look for it."""

from __future__ import annotations

from zeropod.api import cgroups_v1_pb2 as v1
from zeropod.api import cgroups_v2_pb2 as v2
from zeropod.container.stats import Usage
from zeropod.task.metrics import encode

UNLIMITED = 2**64 - 1
USAGE = Usage(
    cpu_ns=30_000,
    cpu_user_ns=20_000,
    cpu_kernel_ns=10_000,
    memory=500,
    memory_max=900,
    memory_limit=1000,
    anon=100,
    file=200,
    inactive_file=50,
    active_file=150,
    page_faults=7,
    major_faults=3,
    pids=4,
    pids_limit=99,
)


def as_v2(usage: Usage) -> Usage:
    return Usage(**{name: getattr(usage, name) for name in Usage.__slots__} | {"v2": True})


def test_v2() -> None:
    found = encode(as_v2(USAGE))
    assert found.type_url == "io.containerd.cgroups.v2.Metrics"
    metrics = v2.Metrics.FromString(found.value)
    assert (metrics.cpu.usage_usec, metrics.cpu.user_usec, metrics.cpu.system_usec) == (30, 20, 10)
    memory = metrics.memory
    assert (memory.usage, memory.usage_limit, memory.anon, memory.file) == (500, 1000, 100, 200)
    assert (memory.inactive_file, memory.active_file) == (50, 150)
    assert (memory.pgfault, memory.pgmajfault) == (7, 3)
    assert (metrics.pids.current, metrics.pids.limit) == (4, 99)


def test_v1() -> None:
    found = encode(USAGE)
    assert found.type_url == "io.containerd.cgroups.v1.Metrics"
    metrics = v1.Metrics.FromString(found.value)
    cpu = metrics.cpu.usage
    assert (cpu.total, cpu.user, cpu.kernel) == (30_000, 20_000, 10_000)
    memory = metrics.memory
    assert (memory.usage.usage, memory.usage.limit, memory.usage.max) == (500, 1000, 900)
    assert (memory.total_inactive_file, memory.total_active_file) == (50, 150)
    assert (memory.total_rss, memory.total_cache) == (100, 200)
    assert (memory.total_pg_fault, memory.total_pg_maj_fault) == (7, 3)
    assert (metrics.pids.current, metrics.pids.limit) == (4, 99)


def test_readers_find_every_part_they_do_not_check_for() -> None:
    """Prometheus plug-ins of containerd read into these without asking whether they are there."""
    first = v1.Metrics.FromString(encode(Usage()).value)
    assert all(first.HasField(name) for name in ("pids", "cpu", "memory"))
    assert first.cpu.HasField("usage")
    assert first.cpu.HasField("throttling")
    assert first.memory.HasField("usage")
    second = v2.Metrics.FromString(encode(Usage(v2=True)).value)
    assert all(second.HasField(name) for name in ("pids", "cpu", "memory", "memory_events"))


def test_no_limit() -> None:
    second = v2.Metrics.FromString(encode(Usage(v2=True)).value)
    assert (second.memory.usage_limit, second.pids.limit) == (UNLIMITED, UNLIMITED)
    first = v1.Metrics.FromString(encode(Usage()).value)
    assert (first.memory.usage.limit, first.pids.limit) == (UNLIMITED, 0)
