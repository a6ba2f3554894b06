"""The command from its arguments to its exit code, against shims that answer."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.command.conftest import Node
from zeropod.api.inspect_pb2 import Container, Details
from zeropod.cli import main
from zeropod.command import show

Make = Callable[..., Container]
S = 10**9
NOW = 1_700_000_000 * S


@pytest.fixture
def zeropod(node: Node, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(verb: str, *argv: str) -> tuple[int, str, str]:
        code = main([verb, "--root", str(node.root), *argv])
        return code, *capfd.readouterr()

    return run


Run = Callable[..., tuple[int, str, str]]


def test_ps(node: Node, make_container: Make, zeropod: Run) -> None:
    node.add(
        "a",
        make_container(
            since_ns=time.time_ns() - 3 * 3600 * S,
            next_sleep_ns=time.time_ns() + 3600 * S - 1,
            memory_bytes=9_856_000,
            wakes=12,
            last_wake_duration_ns=62_140_000,
            reason="the last packet was\n 10.1.2.3:5's",
        ),
        make_container("f0" * 32, name="db", state="SCALED_DOWN", image_bytes=7 << 20),
    )
    code, out, err = zeropod("ps")
    header, first, second = (re.split(r"  +", line) for line in out.splitlines())
    assert (code, err) == (0, "")
    assert header[:4] == ["ID", "CONTAINER", "STATE", "SINCE"]
    assert first == [
        *("abc1abc1abc1", "default/web-1/app", "RUNNING", "3h", "9.4 MiB", "-"),
        *("12", "62.1 ms", "59m", "the last packet was 10.1.2.3:5's"),
    ]
    assert second[:3] == ["f0f0f0f0f0f0", "default/web-1/db", "SCALED_DOWN"]
    assert second[4:] == ["0 B", "7.0 MiB", "0", "-", "-", "-"]


def test_ps_for_a_program(node: Node, make_container: Make, zeropod: Run) -> None:
    node.add("a", make_container(wakes=2**40, reason="a\nb"))
    code, out, _ = zeropod("ps", "--json")
    (one,) = json.loads(out)
    assert code == 0 and (one["wakes"], one["reason"], one["pod_name"]) == (2**40, "a\nb", "web-1")
    assert set(one) == {field.name for field in Container.DESCRIPTOR.fields}


def test_nothing_runs(zeropod: Run) -> None:
    assert zeropod("ps", "--json") == (0, "[]\n", "")
    code, out, _ = zeropod("ps")
    assert code == 0 and out.startswith("ID") and len(out.splitlines()) == 1


def test_what_is_wrong_is_said_beside_the_answer(
    node: Node, make_container: Make, zeropod: Run
) -> None:
    node.add("a", make_container())
    dead = node.add_dead("b")
    code, out, err = zeropod("ps")
    assert (code, err) == (0, f"zeropod: {dead}: its shim is dead, skipped\n")
    assert "default/web-1/app" in out
    hanging = node.add_hanging("c")
    code, out, err = zeropod("ps", "--timeout", "0.2")
    assert code == 1 and "default/web-1/app" in out
    assert f"zeropod: {hanging}: no answer within 0.2 s: its shim hangs" in err


def test_wake_and_sleep(node: Node, make_container: Make, zeropod: Run) -> None:
    shim = node.add("a", make_container(), make_container("f0" * 32, name="db"))
    code, out, err = zeropod("sleep", "app", "f0f0")
    assert (code, err) == (0, "")
    assert out == (
        "default/web-1/app: asleep after 91.0 ms, 7.0 MiB\n"
        "default/web-1/db: asleep after 91.0 ms, 7.0 MiB\n"
    )
    assert zeropod("sleep", "app") == (0, "default/web-1/app: is asleep\n", "")
    assert zeropod("wake", "app") == (0, "default/web-1/app: woken in 62.1 ms\n", "")
    assert zeropod("wake", "app") == (0, "default/web-1/app: is awake\n", "")
    assert shim.asked == [
        *(f"sleep {'abc1' * 16}", f"sleep {'f0' * 32}", f"sleep {'abc1' * 16}"),
        *(f"wake {'abc1' * 16}", f"wake {'abc1' * 16}"),
    ]


def test_nobody_reads_what_became_of_it(node: Node, make_container: Make) -> None:
    shim = node.add("a", make_container(), make_container("f0" * 32, name="db"))
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "zeropod", "sleep", "app", "db", "--root", str(node.root)]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, timeout=60)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")
    assert [one.state for one in shim.containers.values()] == ["SCALED_DOWN"] * 2


def test_an_output_that_is_full(node: Node) -> None:
    command = [sys.executable, "-m", "zeropod", "ps", "--root", str(node.root)]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, timeout=60)
    assert done.returncode == 1
    assert done.stderr == b"zeropod: its output cannot be written: No space left on device\n"


def test_what_a_container_says_is_not_said_to_the_terminal(
    node: Node, make_container: Make, zeropod: Run
) -> None:
    node.add("a", make_container(reason="held by \x1b[2J\u202e")).refusal = "\x1b]0;"
    _, out, _ = zeropod("ps")
    assert "held by ?[2J?" in out and out.isascii()
    _, out, err = zeropod("sleep", "app")
    assert err == "zeropod: default/web-1/app cannot sleep: ?]0;\n"


def test_a_sleep_that_is_refused(node: Node, make_container: Make, zeropod: Run) -> None:
    """The others have their turn."""
    node.add("a", make_container()).refusal = "exec e1 keeps it awake"
    node.add("b", make_container("f0" * 32, name="db"))
    code, out, err = zeropod("sleep", "app", "nobody", "db")
    assert code == 1 and out == "default/web-1/db: asleep after 91.0 ms, 7.0 MiB\n"
    assert err.splitlines() == [
        "zeropod: default/web-1/app cannot sleep: exec e1 keeps it awake",
        "zeropod: there is no container 'nobody': `zeropod ps` shows all",
    ]
    code, out, err = zeropod("sleep", "--force", "app")
    assert (code, out, err) == (0, "default/web-1/app: asleep after 91.0 ms, 7.0 MiB\n", "")


def test_inspect(node: Node, make_container: Make, zeropod: Run) -> None:
    node.add("a", make_container())
    code, out, err = zeropod("inspect", "app")
    assert (code, err) == (0, "") and out.startswith("default/web-1/app\n")
    assert f"{'abc1' * 16} in namespace k8s.io" in out and "process 4711" in out
    code, out, _ = zeropod("inspect", "app", "--json")
    assert code == 0 and json.loads(out)["container"]["name"] == "app"
    code, out, err = zeropod("inspect", "nobody")
    assert (code, out) == (1, "") and "there is no container 'nobody'" in err


def test_every_line_of_an_inspection(make_container: Make) -> None:
    found = Details(
        container=make_container(
            since_ns=NOW - 5 * S,
            next_sleep_ns=NOW + 55 * S,
            reason="why",
            sleeps=3,
            sleep_errors=1,
            last_sleep_ns=NOW - 60 * S,
            wakes=3,
            last_wake_ns=NOW - 5 * S,
        ),
        bundle="/bundle",
        engine="runc",
        activation="auto",
        scaledown_duration_ns=60 * S,
        min_awake_ns=30 * S,
        open_connections=2,
    )
    found.ports.add(
        number=80,
        protocol="tcp",
        mode="pass",
        last_activity_ns=NOW - 5 * S,
        last_source="10.1.2.3:5",
        of_node=True,
        unread="tls",
    )
    found.ports.add(number=53, protocol="udp", mode="park_all")
    found.last_wake.by = "a connection"
    found.last_wake.phases.add(name="listens", duration_ns=44_000_000)
    found.last_wake.phases.add(name="restored", duration_ns=60_000_000)
    found.connections.update({"probes": 4, "held": 0})
    title, *lines = show.details(found, NOW)
    shown = dict(re.split(r"  +", line.strip(), maxsplit=1) for line in lines)
    assert title == "default/web-1/app"
    assert shown["state"] == "RUNNING for 5.0s" and shown["sleeps in"] == "55s"
    assert shown["reason"] == "why"
    assert shown["settings"] == (
        "scaledown-duration 60s, min-awake 30s, activation auto, engine runc"
    )
    assert shown["sleeps"] == "3, 1 failed, the last 60s ago"
    assert shown["wakes"] == "3, the last 5.0s ago"
    assert shown["last wake"] == (
        "by a connection: listens after 44.0 ms, the restore has ended after 60.0 ms"
    )
    assert shown["port 80/tcp"] == (
        "openers pass; last used 5.0s ago by 10.1.2.3:5 of the node, TLS"
    )
    assert shown["port 53/udp"] == "openers are parked; never used"
    assert shown["connections"] == "2 open; probes 4"
    assert shown["packets"] == "nothing counted"


@pytest.mark.parametrize(
    "argv",
    [["sleep"], ["fly"], ["inspect"], ["ps", "--watch", "0"], ["ps", "--timeout", "soon"]],
)
def test_a_command_line_that_makes_no_sense(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2


@pytest.mark.parametrize("verb", ["", "ps", "inspect", "wake", "sleep"])
def test_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*filter(None, [verb]), "--help"])
    assert caught.value.code == 0 and "usage: zeropod" in capsys.readouterr().out


def test_without_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "put containers to sleep" in capsys.readouterr().out


def test_a_root_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["ps", "--root", str(tmp_path / "file")]) == 1
    assert capsys.readouterr().err == f"zeropod: {tmp_path}/file: Not a directory\n"


def _process(node: Node, *argv: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "zeropod", "ps", "--root", str(node.root), *argv]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def _line(process: subprocess.Popen[bytes]) -> bytes:
    """The next one."""
    assert process.stdout is not None and process.stderr is not None
    return process.stdout.readline() or pytest.fail(process.stderr.read().decode())


def test_watch_goes_on_until_ctrl_c(node: Node, make_container: Make) -> None:
    shim = node.add("a", make_container())
    with _process(node, "--json", "--watch", "0.05") as process:
        first = json.loads(_line(process))
        shim.containers["abc1" * 16].wakes = 7
        while json.loads(_line(process))[0]["wakes"] != 7:
            pass
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert first[0]["wakes"] == 0
    assert (process.returncode, err) == (0, b"")


def test_watch_ends_when_nobody_reads(node: Node, make_container: Make) -> None:
    node.add("a", make_container())
    with _process(node, "--watch", "0.05") as process:
        assert process.stdout is not None and process.stderr is not None
        _line(process)
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait(60) == 0
    assert err == b""
