"""What a program that the shim starts finds of it: nothing but what it was given."""

from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import Iterator

import pytest

from zeropod._fastpath._command import set_open_files
from zeropod._fastpath._spawn import spawn
from zeropod.oci.reaper import Reaper


@pytest.fixture
def raised() -> Iterator[int]:
    """This process has raised its soft limit, as a shim does. What it was before, or lower."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    set_open_files(min(soft, hard - 1))
    yield min(soft, hard - 1)
    set_open_files(0)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_raised_limit_is_not_passed_on(raised: int) -> None:
    reaper = Reaper(asyncio.get_running_loop())
    done = await reaper.run(["cat", "/proc/self/limits"])
    reaper.close()
    (line,) = (row for row in done.output.decode().splitlines() if "open files" in row)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert line.split()[3:5] == [str(raised), str(hard)] and soft == hard


def test_without_a_word_it_is_passed_on() -> None:
    read, write = os.pipe()
    command = ["sh", "-c", "ulimit -Sn"]
    pid = spawn(command, env=dict(os.environ), stdio=(-1, write, -1))
    os.close(write)
    with os.fdopen(read) as output:
        assert int(output.read()) == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    os.waitpid(pid, 0)


async def test_a_killed_command_takes_what_it_started_along() -> None:
    """A runtime's CRIU, for one, which may hang without it."""
    reaper = Reaper(asyncio.get_running_loop())
    read, write = os.pipe2(os.O_CLOEXEC)
    script = "sleep 1000 <&- & kill -9 $$"
    done = await reaper.run(["sh", "-c", script], stdio=(-1, write, write))
    os.close(write)
    assert done.status == 137
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(read, ended.set)  # the end of file: nobody has it open any more
    async with asyncio.timeout(60):
        await ended.wait()
    loop.remove_reader(read)
    assert os.read(read, 1) == b""
    os.close(read)
    reaper.close()
