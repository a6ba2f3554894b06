"""A node has more pods than the kernel allows a user inotify instances (128)."""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from tests.netns import bpf
from tests.netns.conftest import OPTIONS, PORT
from zeropod._fastpath._activator import Activator
from zeropod.oci.syscalls import unshare

PODS = 200
_CLONE_NEWNET = 0x40000000


@pytest.fixture
def descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def new_namespace() -> int:
    """A network namespace that lives as long as the descriptor; made by a thread of its own."""
    made: list[int] = []

    def enter() -> None:
        unshare(_CLONE_NEWNET)
        made.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    return made[0]


@pytest.mark.usefixtures("descriptors")
def test_two_hundred_pods_sleep_at_once() -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with ExitStack() as stack:
        for _ in range(PODS):
            netns_fd = new_namespace()
            stack.callback(os.close, netns_fd)
            activator = stack.enter_context(closing(Activator(netns_fd, count_loopback=False)))
            activator.hold(activator.add_group((PORT,), **OPTIONS))
        ids = bpf.held_ids()
        assert len([id for id in ids if id.kind == "link_id"]) == 2 * PODS
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    bpf.wait_gone(ids, 60)
