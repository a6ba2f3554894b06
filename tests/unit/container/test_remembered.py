"""Execs that are answered from memory while the container sleeps, and those that are not."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from lab import waiting
from tests.unit.container.conftest import Box, Make
from tests.unit.container.exec_client import LIMIT_S, Client, SleeperScaler
from zeropod.container import execs, stdio
from zeropod.container.events import Deleted, ExecAdded, ExecStarted, Exited, Stdio
from zeropod.container.phase import Phase
from zeropod.container.remembered import MAX_BYTES, MAX_COMMANDS, Readers, Teed
from zeropod.container.state import State
from zeropod.errors import NotFound
from zeropod.oci.reaper import Exit

Connect = Callable[..., Any]


@pytest.fixture
async def connect(make: Make, tmp_path: Path) -> AsyncIterator[Connect]:
    """connect(**annotations): a client of a running container, with `exec-probes: cached`."""
    clients: list[Client] = []

    async def connected(**annotations: str) -> Client:
        given = {"exec_probes": "cached", **annotations}
        box: Box = await make("sleep", "60", make_scaler=SleeperScaler, **given)
        await box.container.start()
        clients.append(Client(box, tmp_path))
        return clients[-1]

    yield connected
    for client in clients:
        assert client.scaler.inhibited == []
        if client.box.container.init.exit is None:
            client.box.container.state_now = State.RUNNING


_COUNTED = 'echo >>"$0"; wc -l <"$0"; echo warned >&2'
"""Says how often it has run: what a second run says is something else."""


async def test_asleep_the_same_command_is_answered_and_nothing_runs(connect: Connect) -> None:
    client = await connect()
    command = ("sh", "-c", _COUNTED, str(client.folder / "runs"))
    await client.exec(*command)
    awake = await client.exec(*command)
    assert (awake.stdout, awake.stderr, awake.exit.status) == (b"2\n", b"warned\n", 0)
    for phase in (Phase.ASLEEP, Phase.DUMPING, Phase.ASLEEP):
        client.scaler.sleep(phase)
        asleep = await client.exec(*command)
        assert (asleep.stdout, asleep.stderr, asleep.exit.status) == (b"2\n", b"warned\n", 0)
        assert asleep.told == awake.told == [ExecAdded, ExecStarted, Exited, Deleted]
        assert asleep.pid == client.box.container.init.pid
    assert client.runs == 2
    assert client.scaler.woken == []


async def test_by_default_an_exec_wakes(connect: Connect) -> None:
    client = await connect(exec_probes="wake")
    for count in range(1, 4):
        assert (await client.exec("echo", "x")).stdout == b"x\n"
        assert (client.runs, len(client.scaler.woken)) == (count, count - 1)
        client.scaler.sleep()


async def test_on_its_way_back_it_is_waited_for(connect: Connect) -> None:
    client = await connect()
    await client.exec("echo", "x")
    client.scaler.sleep(Phase.WAKING)
    assert (await client.exec("echo", "x")).stdout == b"x\n"
    assert client.runs == 2


async def test_what_it_says_is_what_it_said_last(connect: Connect) -> None:
    client = await connect()
    command = ("sh", "-c", _COUNTED, str(client.folder / "runs"))
    for count in (b"1\n", b"2\n"):
        assert (await client.exec(*command)).stdout == count
        client.scaler.sleep()
        assert (await client.exec(*command)).stdout == count
        await client.scaler.ensure_awake("user")


_SAME: dict[str, Any] = {"args": ["echo", "x"], "cwd": "/", "env": ["A=1"], "user": {"uid": 0}}


@pytest.mark.parametrize(
    "other",
    [
        {"args": ["echo", "x", ""]},
        {"cwd": "/tmp"},
        {"env": ["A=2"]},
        {"env": []},
        {"user": {"uid": 0, "gid": 1}},
        {"capabilities": {}},
    ],
    ids=lambda other: str(*other),
)
async def test_another_command_wakes(connect: Connect, other: dict[str, Any]) -> None:
    client = await connect()
    stdout, stderr = client.fifos("out", "err")
    await client.run(Stdio("", stdout, stderr), **_SAME)
    client.scaler.sleep()
    stdout, stderr = client.fifos("out", "err")
    await client.run(Stdio("", stdout, stderr), **_SAME | other)
    assert client.runs == 2
    assert client.scaler.woken == ["exec e2"]


@pytest.mark.parametrize("way", ["terminal", "stdin", "no stderr"])
async def test_the_same_with_other_streams_wakes(connect: Connect, way: str) -> None:
    client = await connect()
    command = {"args": ["true"]}
    for asleep in (False, True):
        stdin, stdout, stderr = client.fifos("in", "out", "err")
        streams = {
            "terminal": Stdio("", stdout, "", terminal=True),
            "stdin": Stdio(stdin, stdout, stderr),
            "no stderr": Stdio("", stdout, ""),
        }[way]
        if not asleep:
            await client.run(Stdio("", stdout, stderr), **command)
            client.scaler.sleep()
        else:
            await client.run(streams, **command)
    assert client.runs == 2
    assert client.scaler.woken == ["exec e2"]


async def test_without_outputs_there_is_nothing_to_be_said(connect: Connect) -> None:
    client = await connect()
    for _ in range(2):
        client.number += 1
        assert (await client.run(Stdio(), args=["true"])).exit.status == 0
        client.scaler.sleep()
    assert (client.runs, client.scaler.woken) == (1, [])


@pytest.mark.parametrize("end", ["exit 1", "kill -9 $$"])
async def test_a_failure_is_not_remembered_and_ends_what_was(connect: Connect, end: str) -> None:
    client = await connect()
    bad = client.folder / "bad"
    command = ("sh", "-c", f'if [ -e "$0" ]; then {end}; fi; echo good', str(bad))
    await client.exec(*command)
    bad.touch()
    assert (await client.exec(*command)).exit.status in (1, 137)
    bad.unlink()
    client.scaler.sleep()
    assert (await client.exec(*command)).stdout == b"good\n"
    assert client.scaler.woken == ["exec e3"]


async def test_one_that_cannot_be_started_ends_what_was_remembered(connect: Connect) -> None:
    client = await connect()
    await client.exec("echo", "x")
    client.box.fail("exec", "no such file")
    with pytest.raises(Exception, match="no such file"):
        await client.box.exec("e9", "echo", "y")
    with pytest.raises(Exception, match="no such file"):
        await client.exec("echo", "x")
    (client.box.path / "fail-exec").unlink()
    client.scaler.sleep()
    await client.exec("echo", "x")
    assert client.scaler.woken == ["exec e3"]


@pytest.mark.parametrize(("bytes_", "woken"), [(MAX_BYTES, 0), (MAX_BYTES + 1, 1)])
async def test_what_is_remembered_of_one_is_bounded(
    connect: Connect, bytes_: int, woken: int
) -> None:
    """Both outputs together."""
    client = await connect()
    script = 'head -c "$0" /dev/zero; head -c 8000 /dev/zero >&2'
    for _ in range(2):
        said = await client.exec("sh", "-c", script, str(bytes_ - 8000))
        assert (said.stdout, said.stderr) == (bytes(bytes_ - 8000), bytes(8000))
        client.scaler.sleep()
    assert len(client.scaler.woken) == woken


async def test_how_many_are_remembered_is_bounded(connect: Connect) -> None:
    """The one that has not run for the longest time is forgotten."""
    client = await connect()
    for number in range(MAX_COMMANDS):
        await client.exec("echo", str(number))
    await client.exec("echo", "0")  # again: 1 is the oldest now
    await client.exec("echo", "one more")
    client.scaler.sleep()
    for number in (0, *range(2, MAX_COMMANDS)):
        assert (await client.exec("echo", str(number))).stdout == b"%d\n" % number
    assert client.scaler.woken == []
    await client.exec("echo", "1")
    assert len(client.scaler.woken) == 1


async def test_what_a_daemon_may_still_say_is_not_remembered(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stdio, "_FLUSH_S", 0.05)
    monkeypatch.setattr(stdio, "_DRAIN_S", 0.05)
    client = await connect()
    note = client.folder / "note"
    command = ("sh", "-c", f"(sleep 60 & echo $! >{note}); echo x")
    for _ in range(2):
        assert (await client.exec(*command)).stdout == b"x\n"
        os.kill(int(note.read_text()), 9)
        client.scaler.sleep()
    assert client.runs == 2


async def test_awake_much_output_passes_whole(connect: Connect) -> None:
    client = await connect()
    said = await client.exec("sh", "-c", "seq 200000; seq 100000 >&2")
    assert said.stdout == b"".join(b"%d\n" % number for number in range(1, 200001))
    assert said.stderr == b"".join(b"%d\n" % number for number in range(1, 100001))


async def test_an_answer_waits_for_room_and_holds_up_nobody(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[Teed] = []
    piece = Teed._piece

    def noted(copy: Teed) -> int:
        tries.append(copy)
        return piece(copy)

    client = await connect()
    command = ("sh", "-c", "seq 3000")
    awake = await client.exec(*command)
    client.scaler.sleep()
    stdout, stderr = client.fifos("out", "err")
    reader = os.open(stdout, os.O_RDWR | os.O_NONBLOCK)
    other = os.open(stderr, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
    filled = os.write(reader, b"0" * 4096)
    spec = json.dumps({"args": command}).encode()
    monkeypatch.setattr(Teed, "_piece", noted)
    await client.box.container.add_exec("slow", spec, Stdio("", stdout, stderr))
    await client.box.container.start("slow")
    told = asyncio.create_task(client.box.container.wait("slow"))
    assert (await client.exec(*command)).stdout == awake.stdout  # another, meanwhile
    assert not told.done()
    assert tries.count(tries[0]) == 1, "it tries again without having been told of room"
    found = b""
    async with asyncio.timeout(LIMIT_S):
        while len(found) < filled + len(awake.stdout):
            with contextlib.suppress(BlockingIOError):
                found += os.read(reader, 4096)
            await asyncio.sleep(0)
        assert (await told).status == 0
    assert found == b"0" * filled + awake.stdout
    await client.box.container.delete("slow")
    os.close(reader)
    os.close(other)
    assert client.scaler.woken == []


async def test_where_nobody_reads_it_runs(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was said before a reader has come would be lost."""
    monkeypatch.setattr(execs, "_READER_S", (0.001, 0.001))
    client = await connect()
    await client.exec("echo", "x")
    client.scaler.sleep()
    stdout, stderr = client.fifos("out", "err")
    reader = os.open(stdout, os.O_RDONLY | os.O_NONBLOCK)
    spec = json.dumps({"args": ["echo", "x"]}).encode()
    await client.box.container.add_exec("early", spec, Stdio("", stdout, stderr))
    await client.box.container.start("early")
    assert client.scaler.woken == ["exec early"]
    assert (await client.box.container.wait("early")).status == 0
    assert os.read(reader, 10) == b"x\n"
    os.close(reader)
    await client.box.container.delete("early")


async def test_a_reader_that_comes_late_is_waited_for(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = asyncio.Event()

    class Looking(Readers):
        def there(self) -> bool:
            looked.set()
            return super().there()

    client = await connect()
    await client.exec("echo", "x")
    client.scaler.sleep()
    monkeypatch.setattr(execs, "Readers", Looking)
    stdout, stderr = client.fifos("out", "err")
    spec = json.dumps({"args": ["echo", "x"]}).encode()
    await client.box.container.add_exec("early", spec, Stdio("", stdout, stderr))
    starting = asyncio.create_task(client.box.container.start("early"))
    await looked.wait()
    async with client.reading(stdout, stderr) as outputs:
        await starting
        assert [await output for output in outputs] == [b"x\n", b""]
    await client.box.container.wait("early")
    await client.box.container.delete("early")
    assert client.scaler.woken == []


@pytest.mark.parametrize("late", ["", "out", "err"])
async def test_who_opens_to_read_is_there(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    """He hangs in open(2) until there is a writer, as containerd does; or one of two comes late."""
    looked = asyncio.Event()

    class Looking(Readers):
        def there(self) -> bool:
            found = super().there()
            looked.set()
            return found

    client = await connect()
    await client.exec("echo", "x")
    client.scaler.sleep()
    monkeypatch.setattr(execs, "Readers", Looking)
    stdout, stderr = client.fifos("out", "err")
    tids: list[int] = []

    def read(path: str) -> bytes:
        tids.append(threading.get_native_id())
        return Path(path).read_bytes()

    def begin(path: str) -> asyncio.Task[bytes]:
        return asyncio.create_task(asyncio.to_thread(read, path))

    readers = {
        path: begin(path) for path in (stdout, stderr) if not late or not path.endswith(late)
    }

    def open_() -> bool:
        return len(tids) == len(readers) and all(map(_is_opening, tids))

    await asyncio.to_thread(waiting.until, "readers", open_)
    spec = json.dumps({"args": ["echo", "x"]}).encode()
    await client.box.container.add_exec("late", spec, Stdio("", stdout, stderr))
    starting = asyncio.create_task(client.box.container.start("late"))
    await looked.wait()
    readers |= {path: begin(path) for path in (stdout, stderr) if path not in readers}
    await starting
    said = await asyncio.wait_for(asyncio.gather(readers[stdout], readers[stderr]), LIMIT_S)
    assert said == [b"x\n", b""]
    await client.box.container.wait("late")
    await client.box.container.delete("late")
    assert client.scaler.woken == []
    assert client.scaler.woken == []


def _is_opening(tid: int) -> bool:
    """Whether a thread hangs in openat(2)."""
    return Path(f"/proc/self/task/{tid}/syscall").read_text().startswith("257 ")


async def test_one_that_was_answered_has_ended(connect: Connect) -> None:
    client = await connect()
    await client.exec("true")
    client.scaler.sleep()
    stdout, stderr = client.fifos("out", "err")
    container = client.box.container
    async with client.reading(stdout, stderr) as outputs:
        spec = json.dumps({"args": ["true"]}).encode()
        await container.add_exec("e9", spec, Stdio("", stdout, stderr))
        await container.start("e9")
        with pytest.raises(NotFound, match="already finished"):
            await container.kill(9, exec_id="e9")
        assert [info.exec_id for info in await container.pids()] == [""]
        assert (await container.wait("e9")).status == 0
        assert [await output for output in outputs] == [b"", b""]
    await container.delete("e9")
    assert client.box.told(Exited) == ["e1", "e9"]


async def test_the_end_of_the_container_is_told_after_that_of_an_answer(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where its output is not read: that is waited for as long as with any exec."""
    client = await connect()
    command = ("head", "-c", "8000", "/dev/zero")
    await client.exec(*command)
    client.scaler.sleep()
    monkeypatch.setattr(stdio, "_FLUSH_S", 0.05)
    (stdout,) = client.fifos("out")
    reader = os.open(stdout, os.O_RDWR | os.O_NONBLOCK)
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
    stderr = client.fifos("err")[0]
    other = os.open(stderr, os.O_RDONLY | os.O_NONBLOCK)
    spec = json.dumps({"args": command}).encode()
    await client.box.container.add_exec("slow", spec, Stdio("", stdout, stderr))
    await client.box.container.start("slow")
    client.box.container.publish_exit(Exit(137, 1))
    assert (await client.box.container.wait()).status == 137
    assert client.box.told(Exited) == ["e1", "slow", "c1"]
    assert client.scaler.woken == []
    await client.box.container.delete("slow")
    os.close(reader)
    os.close(other)


async def test_execs_of_users_count_and_those_of_probes_do_not(connect: Connect) -> None:
    """A user's have a terminal or a stdin."""
    client = await connect()
    for _ in range(2):
        await client.exec("true")
    assert client.scaler.counted == []
    for streams in ("stdin", "terminal"):
        stdin, stdout = client.fifos("in", "out")
        given = Stdio(stdin, stdout) if streams == "stdin" else Stdio("", stdout, terminal=True)
        await client.run(given, args=["true"])
    assert client.scaler.counted == ["exec e3", "exec e4"]
