"""Pipes, FIFOs and terminals: nothing is lost, nothing blocks, everything ends."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.container.conftest import Box, Make
from zeropod.container import stdio
from zeropod.container.events import Exited, Stdio
from zeropod.container.stdio import Copy
from zeropod.errors import RuntimeFailed

_LIMIT_S = 10


class Fifos:
    """What containerd has: FIFOs, and its ends of them."""

    def __init__(self, folder: Path) -> None:
        self.paths = [str(folder / name) for name in ("in", "out", "err")]
        for path in self.paths:
            os.mkfifo(path)
        self.ends = [os.open(path, os.O_RDWR | os.O_NONBLOCK) for path in self.paths]

    def stdio(self, *, terminal: bool = False) -> Stdio:
        stdin, stdout, stderr = self.paths
        return Stdio(stdin, stdout, "" if terminal else stderr, terminal)

    def write(self, data: bytes) -> None:
        assert os.write(self.ends[0], data) == len(data)

    async def read_until(self, word: bytes) -> bytes:
        """All of stdout up to ``word``, and what came with it."""
        loop, found = asyncio.get_running_loop(), b""
        async with asyncio.timeout(_LIMIT_S):
            while word not in found:
                ready = loop.create_future()
                loop.add_reader(self.ends[1], ready.set_result, None)
                try:
                    await ready
                finally:
                    loop.remove_reader(self.ends[1])
                found += os.read(self.ends[1], 65536)
        return found

    def close(self) -> None:
        for fd in self.ends:
            os.close(fd)


@pytest.fixture
def fifos(machine: None, tmp_path: Path) -> Iterator[Fifos]:
    (folder := tmp_path / "fifos").mkdir()
    made = Fifos(folder)
    yield made
    made.close()


async def _started(make: Make, *args: str, stdio: Stdio) -> Box:
    box: Box = await make(*args, stdio=stdio)
    await box.container.start()
    return box


# -- terminals -----------------------------------------------------------------------------------


async def test_a_terminal_is_one_both_ways(make: Make, fifos: Fifos) -> None:
    box = await _started(
        make, "sh", "-c", "tty; read x; echo got $x; exit 3", stdio=fifos.stdio(terminal=True)
    )
    assert b"/dev/pts/" in await fifos.read_until(b"\r\n")
    fifos.write(b"word\n")
    assert b"got word\r\n" in await fifos.read_until(b"got word\r\n")
    assert (await box.container.wait()).status == 3
    assert box.told(Exited) == ["c1"]
    assert not list(box.path.glob("*.console"))


async def test_a_terminal_has_the_size_it_is_given(make: Make, fifos: Fifos) -> None:
    script = "trap 'stty size' WINCH; echo ready; while :; do read x; done"
    box = await _started(make, "sh", "-c", script, stdio=fifos.stdio(terminal=True))
    await fifos.read_until(b"ready")
    await box.container.resize(132, 43)
    assert b"43 132" in await fifos.read_until(b"43 132")


async def test_an_exec_with_a_terminal(make: Make, fifos: Fifos) -> None:
    box = await _started(make, "sleep", "1000", stdio=Stdio())
    spec = b'{"args": ["sh", "-c", "stty size; read x; stty size"], "terminal": false}'
    await box.container.add_exec("e1", spec, fifos.stdio(terminal=True))
    await box.container.start("e1")
    await fifos.read_until(b"0 0")
    await box.container.resize(80, 24, "e1")
    fifos.write(b"\n")
    await fifos.read_until(b"24 80")
    assert (await box.container.wait("e1")).status == 0
    await box.container.resize(1, 1, "e1")  # over: nothing happens
    await box.container.delete("e1")


async def test_resize_without_a_terminal_does_nothing(make: Make, fifos: Fifos) -> None:
    box = await _started(make, "cat", stdio=fifos.stdio())
    await box.container.resize(80, 24)


async def test_a_runtime_that_sends_no_terminal(make: Make, fifos: Fifos, tmp_path: Path) -> None:
    source = Path(__file__).with_name("runtime.py")
    silent = source.read_text().replace(
        "        if master >= 0:\n            terminal(master)\n", ""
    )
    assert silent != source.read_text()
    (tmp_path / "runc").write_text((tmp_path / "runc").read_text().split("\n")[0] + "\n" + silent)
    with pytest.raises(RuntimeFailed, match="the runtime sent no terminal"):
        await make("sleep", "1000", stdio=fifos.stdio(terminal=True))


async def test_a_terminal_nobody_reads_holds_the_app_and_loses_nothing(
    make: Make, fifos: Fifos
) -> None:
    lines = 40_000  # more than all buffers on the way have room for
    fcntl.fcntl(fifos.ends[1], fcntl.F_SETPIPE_SZ, 4096)
    await _started(make, "seq", "-f", "line %g", str(lines), stdio=fifos.stdio(terminal=True))
    found = await fifos.read_until(f"line {lines}\r\n".encode())
    assert found.split() == [
        word for number in range(1, lines + 1) for word in (b"line", str(number).encode())
    ]


async def test_an_exec_whose_runtime_sends_no_terminal_does_not_run_on(
    make: Make, fifos: Fifos, tmp_path: Path
) -> None:
    box = await _started(make, "sleep", "1000", stdio=Stdio())
    binary = tmp_path / "runc"
    binary.write_text(
        binary.read_text().replace("            terminal(master)\n", "            pass\n")
    )
    spec = b'{"args": ["sleep", "1000"]}'
    await box.container.add_exec("e1", spec, fifos.stdio(terminal=True))
    with pytest.raises(RuntimeFailed, match="the runtime sent no terminal"):
        await box.container.start("e1")
    await box.container.delete("e1")


# -- readers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("exec_id", ["", "e1"])
async def test_a_reader_who_comes_after_the_exit_was_told_gets_all(
    make: Make, fifos: Fifos, monkeypatch: pytest.MonkeyPatch, exec_id: str
) -> None:
    """As under the stock shim: until it is deleted what a process wrote is there to be read."""
    monkeypatch.setattr(stdio, "_FLUSH_S", 0.05)
    words = ("seq", "-f", "line %g", "1500")  # for the FIFO, and some for the pipe
    fcntl.fcntl(fifos.ends[1], fcntl.F_SETPIPE_SZ, 4096)
    if exec_id:
        box = await _started(make, "sleep", "1000", stdio=Stdio())
        spec = json.dumps({"args": words}).encode()
        await box.container.add_exec(exec_id, spec, fifos.stdio())
        await box.container.start(exec_id)
    else:
        box = await _started(make, *words, stdio=fifos.stdio())
    assert (await box.container.wait(exec_id)).status == 0
    deleting = asyncio.create_task(box.container.delete(exec_id))
    found = await fifos.read_until(b"line 1500\n")
    assert found.split() == [word for n in range(1, 1501) for word in (b"line", b"%d" % n)]
    await deleting


async def test_a_reader_who_never_comes_does_not_hold_up_a_delete(
    make: Make, fifos: Fifos, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stdio, "_FLUSH_S", 0.05)
    monkeypatch.setattr(stdio, "_DRAIN_S", 0.05)
    fcntl.fcntl(fifos.ends[1], fcntl.F_SETPIPE_SZ, 4096)
    box = await _started(make, "seq", "1500", stdio=fifos.stdio())
    await box.container.wait()
    before = _descriptors()
    await box.container.delete()
    assert _descriptors() < before


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# -- copies --------------------------------------------------------------------------------------


async def test_end_of_stdin_comes_after_what_was_written_before(make: Make, fifos: Fifos) -> None:
    """Also where pipe and FIFO are full, because the app reads late."""
    box = await _started(make, "sh", "-c", "read go; wc -c", stdio=fifos.stdio())
    os.kill(box.pid, signal.SIGSTOP)
    sent = 0
    while True:
        try:
            sent += os.write(fifos.ends[0], b"\n" + b"x" * 4095)
        except BlockingIOError:
            break
        await asyncio.sleep(0)  # the shim's turn
    await box.container.close_io()
    os.kill(box.pid, signal.SIGCONT)
    assert int(await fifos.read_until(b"\n")) == sent - 1
    assert (await box.container.wait()).status == 0


@pytest.mark.parametrize("full", [False, True])
async def test_finish_moves_all_and_ends(machine: None, full: bool) -> None:
    loop = asyncio.get_running_loop()
    source, ours = os.pipe2(os.O_NONBLOCK)
    theirs, target = os.pipe2(os.O_NONBLOCK)
    filled = 0
    if full:
        fcntl.fcntl(target, fcntl.F_SETPIPE_SZ, 4096)
        filled = os.write(target, b"0" * 4096)
    os.write(ours, b"the rest")
    copy = Copy(loop, source, target)
    copy.finish()
    assert copy.done.done() is not full
    found = os.read(theirs, 65536)
    await asyncio.wait_for(copy.done, _LIMIT_S)
    while len(found) < filled + 8:
        found += os.read(theirs, 65536)
    assert found == b"0" * filled + b"the rest"
    os.close(ours)
    os.close(theirs)
