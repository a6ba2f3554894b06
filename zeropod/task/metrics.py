"""What a container used, in the message of its cgroup version.

No limit is 2**64 - 1, as the stock shim has it, but for the processes of cgroup v1, where it is 0.
"""

from __future__ import annotations

from typing import Final

from google.protobuf.any_pb2 import Any as AnyMessage

from zeropod.api import cgroups_v1_pb2 as v1
from zeropod.api import cgroups_v2_pb2 as v2
from zeropod.container.stats import Usage

_NS_PER_US: Final = 1000
_UNLIMITED: Final = 2**64 - 1


def encode(usage: Usage) -> AnyMessage:
    """The Any that Stats answers."""
    message = _v2(usage) if usage.v2 else _v1(usage)
    return AnyMessage(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


def _v1(usage: Usage) -> v1.Metrics:
    return v1.Metrics(
        pids=v1.PidsStat(
            current=usage.pids, limit=0 if usage.pids_limit == _UNLIMITED else usage.pids_limit
        ),
        cpu=v1.CPUStat(
            usage=v1.CPUUsage(
                total=usage.cpu_ns, kernel=usage.cpu_kernel_ns, user=usage.cpu_user_ns
            ),
            throttling=v1.Throttle(),
        ),
        memory=v1.MemoryStat(
            cache=usage.file,
            rss=usage.anon,
            pg_fault=usage.page_faults,
            pg_maj_fault=usage.major_faults,
            total_cache=usage.file,
            total_rss=usage.anon,
            total_pg_fault=usage.page_faults,
            total_pg_maj_fault=usage.major_faults,
            total_inactive_file=usage.inactive_file,
            total_active_file=usage.active_file,
            usage=v1.MemoryEntry(
                limit=usage.memory_limit, usage=usage.memory, max=usage.memory_max
            ),
        ),
    )


def _v2(usage: Usage) -> v2.Metrics:
    return v2.Metrics(
        pids=v2.PidsStat(current=usage.pids, limit=usage.pids_limit),
        cpu=v2.CPUStat(
            usage_usec=usage.cpu_ns // _NS_PER_US,
            user_usec=usage.cpu_user_ns // _NS_PER_US,
            system_usec=usage.cpu_kernel_ns // _NS_PER_US,
        ),
        memory=v2.MemoryStat(
            anon=usage.anon,
            file=usage.file,
            inactive_file=usage.inactive_file,
            active_file=usage.active_file,
            pgfault=usage.page_faults,
            pgmajfault=usage.major_faults,
            usage=usage.memory,
            usage_limit=usage.memory_limit,
        ),
        memory_events=v2.MemoryEvents(),
    )
