"""Lives of processes: what each verb does in each state, and processes that leave others behind.

The tables say what a client is told; test_state.py has the moves of the container's own states.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from lab import waiting
from tests.unit.container.conftest import Box, Make
from zeropod.container.events import (
    Deleted,
    ExecAdded,
    ExecStarted,
    Exited,
    Started,
    Stdio,
)
from zeropod.container.process import Status
from zeropod.errors import Code, RuntimeFailed, ZeropodError
from zeropod.oci.reaper import Exit, children

_FOREVER = ("sleep", "1000")
_LIMIT_S = 60
_SPEC = b'{"args": ["sleep", "1000"]}'

Verbs = dict[str, Callable[[Box], Awaitable[object]]]


def _table(text: str) -> list[tuple[str, str, str]]:
    """(state, verb, answer) of each cell; "-" cells are left out."""
    head, *rows = (line.split() for line in text.strip().splitlines())
    cells = (
        (state, row[0], cell) for row in rows for state, cell in zip(head, row[1:], strict=True)
    )
    return [cell for cell in cells if cell[2] != "-"]


_CODES = {
    "illegal": Code.FAILED_PRECONDITION,
    "gone": Code.NOT_FOUND,
    "taken": Code.ALREADY_EXISTS,
}


async def _answer(work: Awaitable[object]) -> str:
    """What a verb answers, as the tables write it."""
    try:
        found = await asyncio.wait_for(asyncio.ensure_future(work), _LIMIT_S)
    except ZeropodError as error:
        return next(word for word, code in _CODES.items() if code is error.code)
    if isinstance(found, Exit):
        return str(found.status)
    return found.value if isinstance(found, Status) else "ok"


# -- init ----------------------------------------------------------------------------------------

_INIT = _table("""
        created running paused  stopped deleted
start   ok      illegal illegal illegal gone
kill    ok      ok      ok      gone    gone
exec    ok      ok      illegal illegal gone
pause   illegal ok      illegal illegal gone
resume  illegal illegal ok      illegal gone
update  ok      ok      ok      illegal gone
delete  ok      illegal illegal ok      gone
state   created running paused  stopped stopped
wait    -       -       -       143     143
pids    ok      ok      ok      ok      ok
stats   ok      ok      ok      ok      gone
resize  ok      ok      ok      ok      ok
closeio ok      ok      ok      ok      ok
""")


async def _state(box: Box, exec_id: str = "") -> Status:
    return box.container.state(exec_id).status


_INIT_VERBS: Verbs = {
    "start": lambda box: box.container.start(),
    "kill": lambda box: box.container.kill(signal.SIGCONT),
    "exec": lambda box: box.container.add_exec("e1", _SPEC, Stdio()),
    "pause": lambda box: box.container.pause(),
    "resume": lambda box: box.container.resume(),
    "update": lambda box: box.container.update({}),
    "delete": lambda box: box.container.delete(),
    "state": _state,
    "wait": lambda box: box.container.wait(),
    "pids": lambda box: box.container.pids(),
    "stats": lambda box: box.container.stats(),
    "resize": lambda box: box.container.resize(80, 25),
    "closeio": lambda box: box.container.close_io(),
}


async def _init_in(make: Make, state: str) -> Box:
    box: Box = await make(*_FOREVER)
    if state == "created":
        return box
    await box.container.start()
    if state == "paused":
        await box.container.pause()
    if state in ("stopped", "deleted"):
        await box.container.kill(signal.SIGTERM)
        await box.container.wait()
    if state == "deleted":
        await box.container.delete()
    return box


@pytest.mark.parametrize(("state", "verb", "answer"), _INIT)
async def test_init(make: Make, state: str, verb: str, answer: str) -> None:
    box = await _init_in(make, state)
    assert await _answer(_INIT_VERBS[verb](box)) == answer
    if box.container.state().status is Status.PAUSED:
        await box.container.resume()
    assert box.told().count("c1") == (1 if box.container.init.exit else 0)


# -- execs ---------------------------------------------------------------------------------------

_EXEC = _table("""
        added   starting running ended   failed  deleted
add     taken   taken    taken   taken   taken   ok
start   ok      illegal  illegal illegal illegal gone
kill    illegal illegal  ok      gone    illegal gone
delete  ok      illegal  illegal ok      ok      gone
state   created created  running stopped stopped gone
wait    -       -        -       143     255     gone
resize  ok      ok       ok      ok      ok      gone
closeio ok      ok       ok      ok      ok      gone
""")

_EXEC_VERBS: Verbs = {
    "add": lambda box: box.container.add_exec("e1", _SPEC, Stdio()),
    "start": lambda box: box.container.start("e1"),
    "kill": lambda box: box.container.kill(signal.SIGCONT, exec_id="e1"),
    "delete": lambda box: box.container.delete("e1"),
    "state": lambda box: _state(box, "e1"),
    "wait": lambda box: box.container.wait("e1"),
    "resize": lambda box: box.container.resize(80, 25, "e1"),
    "closeio": lambda box: box.container.close_io("e1"),
}


async def _exec_in(box: Box, state: str) -> None:
    await box.container.add_exec("e1", _SPEC, Stdio())
    if state == "failed":
        box.fail("exec", "no such file")
        with pytest.raises(RuntimeFailed):
            await box.container.start("e1")
    elif state != "added":
        await box.container.start("e1")
    if state in ("ended", "deleted"):
        await box.container.kill(signal.SIGTERM, exec_id="e1")
        await box.container.wait("e1")
    if state == "deleted":
        await box.container.delete("e1")


@pytest.mark.parametrize(("state", "verb", "answer"), _EXEC)
async def test_exec(make: Make, state: str, verb: str, answer: str) -> None:
    box = await make(*_FOREVER)
    await box.container.start()
    if state == "starting":
        reached = box.hold("exec")
        starting = asyncio.create_task(box.exec("e1", *_FOREVER))
        gate = await reached()
        assert await _answer(_EXEC_VERBS[verb](box)) == answer
        os.close(gate)
        await starting
    else:
        await _exec_in(box, state)
        assert await _answer(_EXEC_VERBS[verb](box)) == answer
    ran = state in ("ended", "deleted")
    assert box.told() == (["e1"] if ran else [])


# -- how they end --------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 1, 127, 128, 137, 255])
async def test_the_code_and_the_time_of_an_exit(make: Make, code: int) -> None:
    box = await make("sh", "-c", f"exit {code}")
    before_ns = time.time_ns()
    await box.container.start()
    exit = await box.container.wait()
    assert exit.status == code
    assert before_ns <= exit.at_ns <= time.time_ns()
    assert box.container.state().exit == exit
    gone = await box.container.delete()
    assert gone.exit == exit
    (told,) = (event for event in box.events if isinstance(event, Exited))
    assert told.exit == exit


_ENDING = (1, 2, 3, 6, 9, 10, 14, 15, 24, 31, 34, 50, 64)


@pytest.mark.parametrize("number", _ENDING)
@pytest.mark.parametrize("exec_id", ["", "e1"], ids=["init", "exec"])
async def test_any_signal_by_its_number(make: Make, exec_id: str, number: int) -> None:
    box = await make(*_FOREVER)
    await box.container.start()
    if exec_id:
        await box.exec(exec_id, *_FOREVER)
    await box.container.kill(number, exec_id=exec_id)
    assert (await box.container.wait(exec_id)).status == 128 + number


async def test_a_signal_to_all_reaches_execs(make: Make) -> None:
    box = await make(*_FOREVER)
    await box.container.start()
    await box.exec("e1", *_FOREVER)
    await box.exec("e2", *_FOREVER)
    await box.container.kill(signal.SIGUSR1, all=True)
    ends = [await box.container.wait(id) for id in ("e1", "e2", "")]
    assert [end.status for end in ends] == [128 + signal.SIGUSR1] * 3
    assert box.told()[-1] == "c1" and sorted(box.told()) == ["c1", "e1", "e2"]


async def test_an_exec_that_ends_before_its_start_has_returned(make: Make) -> None:
    """Its start is told first, then its end, with its code; once."""
    box = await make(*_FOREVER)
    await box.container.start()
    reached = box.hold("exec", after=True)
    starting = asyncio.create_task(box.exec("e1", "sh", "-c", "exit 7"))
    gate = await reached()
    pid = int((box.path / "e1.pid").read_text())
    await _is_zombie(pid)
    assert box.told() == []
    os.close(gate)
    assert await starting == pid
    assert (await box.container.wait("e1")).status == 7
    kinds = [type(event) for event in box.events if getattr(event, "exec_id", "") == "e1"]
    assert kinds == [ExecAdded, ExecStarted] and box.told() == ["e1"]
    assert box.events.index(_event(box, Exited)) > box.events.index(_event(box, ExecStarted))


async def test_an_init_that_ends_before_its_start_has_returned(make: Make) -> None:
    box = await make("sh", "-c", "exit 7")
    reached = box.hold("start", after=True)
    starting = asyncio.create_task(box.container.start())
    gate = await reached()
    await _is_zombie(box.pid)
    assert box.told() == []
    os.close(gate)
    await starting
    assert (await box.container.wait()).status == 7
    kinds = [type(event) for event in box.events]
    assert kinds.index(Started) < kinds.index(Exited) and box.told() == ["c1"]


async def test_an_end_is_told_once_however_often_it_is_found(make: Make) -> None:
    """Two who end a sleeper at once, and a Delete that waits meanwhile."""
    box = await make("sleep", "1000")
    await box.container.start()
    os.kill(box.pid, signal.SIGKILL)
    await _is_zombie(box.pid)
    deleting = []
    for _ in range(2):
        box.container.publish_exit(Exit(137, 1))
        deleting.append(asyncio.create_task(box.container.delete()))
    gone = await asyncio.gather(*deleting, return_exceptions=True)
    assert sorted(type(one).__name__ for one in gone) == ["Deleted", "NotFound"]
    box.container.publish_exit(Exit(1, 1))
    assert box.told() == ["c1"] and box.told(Deleted) == ["c1"]
    exit = box.container.state().exit
    assert exit is not None and exit.status == 137  # who was first has told it


def _event(box: Box, kind: type) -> object:
    return next(event for event in box.events if isinstance(event, kind))


def _stat(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


async def _until(what: str, condition: Callable[[], bool]) -> None:
    await asyncio.to_thread(waiting.until, what, condition, _LIMIT_S)


async def _is_zombie(pid: int) -> None:
    await _until(f"end of {pid}", lambda: _stat(pid) == "Z")


# -- what they leave behind ----------------------------------------------------------------------


async def test_an_exec_that_daemonises_ends_and_its_daemon_lives(
    make: Make, tmp_path: Path
) -> None:
    """Its end is told; the daemon becomes ours, and is reaped when it ends."""
    box = await make(*_FOREVER)
    await box.container.start()
    note = tmp_path / "daemon"
    script = f"(setsid sh -c 'echo $$ > {note}.part; mv {note}.part {note}; exec sleep 1000' &)"
    await box.exec("e1", "sh", "-c", script)
    assert (await box.container.wait("e1")).status == 0
    await _until("the daemon", note.exists)
    daemon = int(note.read_text())
    assert _stat(daemon) in "SR"
    await box.container.delete("e1")
    os.kill(daemon, signal.SIGKILL)
    await _until("nothing of the daemon", lambda: _stat(daemon) == "")
    assert daemon not in children()
    assert box.told() == ["e1"] and box.container.init.exit is None


async def test_a_crowd_of_orphans_is_reaped(make: Make, tmp_path: Path) -> None:
    """Grandchildren that end after their parents, without anybody who waits for them."""
    box = await make(*_FOREVER)
    await box.container.start()
    own = set(children())
    script = "for i in $(seq 50); do (sh -c 'kill -STOP $$; exit 3' &) ; done"
    await box.exec("e1", "sh", "-c", script)
    await box.container.wait("e1")
    orphans = set()

    def stopped() -> bool:
        orphans.update(set(children()) - own)
        return sum(_stat(pid) == "T" for pid in orphans) == 50

    await _until("50 orphans", stopped)
    for pid in orphans:
        os.kill(pid, signal.SIGCONT)
    await _until("none of them", lambda: not orphans & set(children()))
    assert box.told() == ["e1"]


async def test_a_zombie_below_init_holds_nothing_up(make: Make, tmp_path: Path) -> None:
    """Init does not wait for its child; its own end is told all the same."""
    note = tmp_path / "child"
    script = (
        "import os, signal; pid = os.fork();\n"
        "if not pid: os._exit(0)\n"
        "os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)\n"
        f"open({str(note)!r}, 'w').write(str(pid))\n"
        "signal.pause()\n"
    )
    box = await make("python3", "-c", script)
    await box.container.start()
    await _until("a child", lambda: note.exists() and note.read_text() != "")
    child = int(note.read_text())
    assert _stat(child) == "Z"
    await box.container.kill(signal.SIGTERM)
    assert (await box.container.wait()).status == 143
    await _until("nothing of the zombie", lambda: _stat(child) == "")
    assert box.told() == ["c1"]


async def test_init_that_daemonises_has_ended(make: Make, tmp_path: Path) -> None:
    """With a pid namespace of its own the kernel would end its child; without one we do."""
    note = tmp_path / "daemon"
    script = f"(setsid sh -c 'echo $$ > {note}.part; mv {note}.part {note}; exec sleep 1000' &)"
    box = await make("sh", "-c", script, pid=None)
    pids = Path(box.container.runtime.root) / "c1" / "pids"
    reached = box.hold("kill")
    await box.container.start()
    gate = await reached()
    await _until("the daemon", note.exists)
    daemon = int(note.read_text())
    with pids.open("a") as file:  # what is in its cgroup
        file.write(f"{daemon}\n")
    os.close(gate)
    assert (await box.container.wait()).status == 0
    await _until("nothing of the daemon", lambda: _stat(daemon) == "")
    assert box.told() == ["c1"]
