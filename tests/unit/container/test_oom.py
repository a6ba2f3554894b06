"""An OOM kill is told when it happens, as often as the kernel says, and never by what is gone.

The cgroups are trees of files: what v1's `cgroup.event_control` was told is in that file, and the
test writes the eventfd as the kernel would; the poll of v2's `memory.events` is an eventfd, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
from functools import partial
from pathlib import Path

import pytest

from tests.unit.container.conftest import Box, Make
from zeropod.container import oom
from zeropod.container.events import Exited, OutOfMemory
from zeropod.container.oom import Oom
from zeropod.container.state import Verb
from zeropod.container.stats import Meter
from zeropod.oci.cgroups import Cgroups


class _Poll:
    """In place of an epoll: readable between a change and the next read of the file."""

    def __init__(self, tree: Tree) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        tree.polls.append(self.fd)

    def fileno(self) -> int:
        return self.fd

    def close(self) -> None:
        os.close(self.fd)


class Tree:
    """A container's memory cgroup; ``seen`` is how often it was told of a kill."""

    def __init__(self, path: Path, *, v2: bool) -> None:
        self.path = path
        self.v2 = v2
        self.seen = 0
        self.kills = 0
        self.polls: list[int] = []
        self.told = asyncio.Event()
        self.make()

    def make(self) -> None:
        self.path.mkdir()
        (self.path / "memory.oom_control").write_text("oom_kill 0\n")
        (self.path / "cgroup.event_control").write_text("")
        self.kills = 0
        self._count()

    def remove(self) -> None:
        """As `rmdir` does: the eventfd is written, too."""
        for file in self.path.iterdir():
            file.write_text("")
            file.unlink()
        self.path.rmdir()

    @property
    def cgroups(self) -> Cgroups:
        if self.v2:
            return Cgroups(self.path, {})
        return Cgroups(None, {"cpu": self.path, "memory": self.path})

    def kill(self) -> None:
        self.kills += 1
        self._count()
        self.notify()

    def notify(self) -> None:
        if self.v2:
            os.eventfd_write(self.polls[-1], 1)
        else:
            fd, control = (self.path / "cgroup.event_control").read_text().split()
            assert int(control) > 0
            os.eventfd_write(int(fd), 1)

    def tell(self) -> None:
        self.seen += 1
        self.told.set()

    async def is_told(self) -> None:
        await asyncio.wait_for(self.told.wait(), 30)
        self.told.clear()

    def _count(self) -> None:
        text = f"low 0\nhigh 7\nmax 9\noom 3\noom_kill {self.kills}\noom_group_kill 0\n"
        (self.path / "memory.events").write_text(text)


@pytest.fixture(params=[False, True], ids=["v1", "v2"])
async def tree(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Tree:
    made = Tree(tmp_path / "c1", v2=request.param)
    if made.v2:
        monkeypatch.setattr(oom, "_changes", lambda file: _Poll(made))
        read = oom._Counter._read

        def read_and_settle(counter: oom._Counter) -> int:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(counter.fd)
            return read(counter)

        monkeypatch.setattr(oom._Counter, "_read", read_and_settle)
    return made


def _oom(tree: Tree) -> Oom:
    return Oom(asyncio.get_running_loop(), tree.tell)


def _fds() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def _rounds() -> None:
    """The loop has looked at every descriptor."""
    for _ in range(3):
        await asyncio.sleep(0)


async def test_each_kill_is_told_when_it_happens(tree: Tree) -> None:
    watch = _oom(tree)
    watch.begin(tree.cgroups)
    for number in (1, 2, 3):
        tree.kill()
        await tree.is_told()
        assert tree.seen == number
    watch.end()
    assert tree.seen == 3


async def test_one_that_the_end_overtakes_is_told_at_the_end(tree: Tree) -> None:
    watch = _oom(tree)
    watch.begin(tree.cgroups)
    tree.kill()
    assert tree.seen == 0
    watch.end()
    assert tree.seen == 1
    await _rounds()
    assert tree.seen == 1


async def test_it_goes_on_in_a_new_cgroup_of_the_same_path(tree: Tree) -> None:
    """A sleep and a restore; what the first life had counted is no news in the second."""
    watch = _oom(tree)
    watch.begin(tree.cgroups)
    tree.kill()
    await tree.is_told()
    watch.close()
    tree.remove()
    tree.make()
    watch.begin(tree.cgroups)
    await _rounds()
    assert tree.seen == 1
    tree.kill()
    await tree.is_told()
    assert tree.seen == 2
    watch.close()


async def test_kills_before_it_began_are_no_news(tree: Tree) -> None:
    tree.kills = 4
    tree._count()
    watch = _oom(tree)
    watch.begin(tree.cgroups)
    watch.end()
    assert tree.seen == 0


async def test_other_events_of_memory_are_not_told(tmp_path: Path, tree: Tree) -> None:
    """Reaching memory.high or memory.max changes the file as well (v2 only)."""
    if not tree.v2:
        (tree.path / "memory.events").unlink()
    watch = _oom(tree)
    watch.begin(tree.cgroups)
    if tree.v2:
        tree.notify()
    await _rounds()
    watch.end()
    assert tree.seen == 0


async def test_the_removal_of_the_cgroup_is_no_kill(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    fds = _fds()
    watch = _oom(tree)
    watch.begin(tree.cgroups)
    if tree.v2:  # a file of a removed cgroup

        def gone(fd: int, size: int, offset: int) -> bytes:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

        monkeypatch.setattr(os, "pread", gone)
    tree.notify()
    tree.remove()
    await _rounds()
    assert tree.seen == 0
    assert _fds() == fds  # let go by itself
    watch.end()
    assert tree.seen == 0


async def test_without_the_memory_controller_nothing_is_watched(
    tree: Tree, caplog: pytest.LogCaptureFixture
) -> None:
    fds = _fds()
    watch = _oom(tree)
    tree.remove()
    watch.begin(tree.cgroups)
    watch.begin(Cgroups(None, {}))
    watch.begin(None)
    watch.end()
    assert not caplog.records
    assert _fds() == fds


async def test_what_cannot_be_watched_is_said(
    tree: Tree, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "eventfd", refused)
    monkeypatch.setattr(oom, "_changes", refused)
    fds = _fds()
    watch = _oom(tree)
    watch.begin(tree.cgroups)
    assert "Too many open files" in caplog.text and str(tree.path) in caplog.text
    assert _fds() == fds
    watch.end()


async def test_a_cgroup_that_goes_in_that_moment(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not tree.v2:
        (tree.path / "memory.oom_control").unlink()

    def gone(fd: int, size: int, offset: int) -> bytes:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    monkeypatch.setattr(os, "pread", gone)
    fds = _fds()
    watch = _oom(tree)
    watch.begin(tree.cgroups)
    assert _fds() == fds
    watch.end()
    assert tree.seen == 0


# -- in a container ------------------------------------------------------------------------------


async def _run(make: Make, tree: Tree, monkeypatch: pytest.MonkeyPatch) -> Box:
    meter = partial(Meter, lambda pid: tree.cgroups)
    monkeypatch.setattr("zeropod.container.container.Meter", meter)
    box: Box = await make("sleep", "60")
    await box.container.start()
    emit = box.pod.emit

    def noted(event: object) -> None:
        emit(event)  # type: ignore[arg-type]
        if isinstance(event, OutOfMemory):
            tree.tell()

    box.pod.emit = noted
    return box


def _news(box: Box) -> list[type]:
    return [type(event) for event in box.events if isinstance(event, OutOfMemory | Exited)]


async def test_a_kill_is_told_before_the_exit(
    make: Make, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = await _run(make, tree, monkeypatch)
    tree.kill()
    await tree.is_told()
    assert _news(box) == [OutOfMemory]
    tree.kill()
    os.kill(box.pid, signal.SIGKILL)
    assert (await box.container.wait()).status == 137
    assert _news(box) == [OutOfMemory, OutOfMemory, Exited]


async def test_asleep_nothing_is_watched(
    make: Make, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Awake again it is; and the one descriptor or two are closed with the container (fixture)."""
    box = await _run(make, tree, monkeypatch)
    container = box.container
    fds = _fds()
    pid = box.pid
    container.move(Verb.SCALE_DOWN)
    container.move(Verb.ASLEEP)
    assert _fds() == fds - (2 if tree.v2 else 1)
    tree.remove()
    tree.make()
    container.move(Verb.RESTORE)
    container.adopt(pid)
    container.move(Verb.AWAKE)
    assert _fds() == fds
    tree.kill()
    await tree.is_told()
    assert _news(box) == [OutOfMemory]
