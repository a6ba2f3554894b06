"""binary:// and file:// loggers: nothing is lost, they begin before the app and end after it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest

from lab import waiting
from tests.unit.container.conftest import Make
from tests.unit.container.test_stdio import Fifos, fifos  # noqa: F401
from zeropod.container import logger
from zeropod.container.events import Stdio
from zeropod.errors import DeadlineExceeded, InvalidArgument

_LOGGER = """#!/bin/sh
env | grep CONTAINER_ > {folder}/seen
echo "$0 $*" >> {folder}/seen
{before}
exec 5>&-
cat <&3 > {folder}/out & cat <&4 > {folder}/err
wait
touch {folder}/over
"""


def _program(folder: Path, before: str = "") -> str:
    path = folder / "a logger"
    path.write_text(_LOGGER.format(folder=folder, before=before))
    path.chmod(0o755)
    return f"binary://{quote(str(path))}"


async def _until(what: str, condition: Callable[[], bool]) -> None:
    await asyncio.to_thread(waiting.until, what, condition, 10)


async def _exists(path: Path) -> None:
    await _until(str(path), path.exists)


async def test_a_file_gets_all_before_the_exit_is_told(make: Make, tmp_path: Path) -> None:
    file = tmp_path / "logs" / "a b"
    (tmp_path / "logs").mkdir()
    file.write_text("before\n")
    script = "for i in $(seq 2000); do echo $i; done; echo bad >&2"
    box = await make("sh", "-c", script, stdio=Stdio("", f"file://{quote(str(file))}", ""))
    await box.container.start()
    await box.container.wait()
    assert file.read_text() == "before\n" + "".join(f"{i}\n" for i in range(1, 2001)) + "bad\n"


async def test_a_file_is_made_with_its_directory(make: Make, tmp_path: Path) -> None:
    file = tmp_path / "some" / "where" / "log"
    box = await make("echo", "hello", stdio=Stdio("", f"file://{file}", ""))
    await box.container.start()
    await box.container.wait()
    assert file.read_text() == "hello\n"
    assert file.stat().st_mode & 0o777 == 0o644


async def test_a_program_gets_both_pipes(make: Make, tmp_path: Path) -> None:
    uri = f"{_program(tmp_path)}?one=1&two=&one=again"
    box = await make("sh", "-c", "echo out; echo err >&2", stdio=Stdio("", uri, uri))
    seen = (tmp_path / "seen").read_text().splitlines()  # it was ready before the app was made
    assert sorted(seen[:2]) == ["CONTAINER_ID=c1", "CONTAINER_NAMESPACE=ns"]
    assert seen[2] == f"{tmp_path}/a logger one 1 two "
    await box.container.start()
    await box.container.wait()
    await _exists(tmp_path / "over")
    assert (tmp_path / "out").read_text() == "out\n"
    assert (tmp_path / "err").read_text() == "err\n"


async def test_an_exec_has_its_own(make: Make, tmp_path: Path) -> None:
    box = await make("sleep", "1000")
    await box.container.start()
    stdio = Stdio("", _program(tmp_path), "")
    await box.container.add_exec("e1", b'{"args": ["echo", "hi"]}', stdio)
    await box.container.start("e1")
    await box.container.wait("e1")
    await _exists(tmp_path / "over")
    assert (tmp_path / "out").read_text() == "hi\n"
    assert "CONTAINER_ID=e1" in (tmp_path / "seen").read_text()


async def test_a_terminal_is_logged(
    make: Make,
    fifos: Fifos,  # noqa: F811
    tmp_path: Path,
) -> None:
    file = tmp_path / "log"
    stdio = Stdio(fifos.paths[0], f"file://{file}", "", terminal=True)
    box = await make("sh", "-c", "read x; echo got $x", stdio=stdio)
    await box.container.start()
    fifos.write(b"word\n")
    await box.container.wait()
    assert "got word\r\n" in file.read_bytes().decode()


async def test_one_that_is_not_ready_in_time(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_READY_S", "_END_S", "_TERMINATE_S"):
        monkeypatch.setattr(logger, name, 0.1)
    uri = _program(tmp_path, before=f"echo $$ > {tmp_path}/pid; exec sleep 1000")
    with pytest.raises(DeadlineExceeded, match="is not ready"):
        await make("true", stdio=Stdio("", uri, ""))
    pid = (tmp_path / "pid").read_text().strip()
    await _until("the logger's end", lambda: not Path(f"/proc/{pid}").exists())


async def test_a_dead_one_is_told_and_the_app_goes_on(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uri = _program(tmp_path, before="exit 7")
    script = f"echo one; echo two; touch {tmp_path}/done; exec sleep 1000"
    with caplog.at_level(logging.ERROR):
        box = await make("sh", "-c", script, stdio=Stdio("", uri, ""))
        await box.container.start()
        await _exists(tmp_path / "done")
        await _until("news of its end", lambda: "ended with status 7" in caplog.text)
    assert box.container.init.exit is None


@pytest.mark.parametrize(
    ("uri", "text"),
    [
        ("binary:///no/such/program", "No such file or directory"),
        ("binary:///etc/passwd", "Permission denied"),
        ("binary://relative", "expected an absolute path"),
        ("file:///proc/nothing", "No such file or directory"),
        ("gopher:///x", "expected a FIFO, binary:// or file://"),
    ],
)
async def test_what_cannot_log_is_refused(make: Make, uri: str, text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        await make("true", stdio=Stdio("", uri, ""))
