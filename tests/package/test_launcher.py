"""Launcher and zygote: what containerd is told, and that no death loses or doubles a start."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from lab import waiting
from tests.package.installation import LAUNCHER
from tests.package.node import Node
from zeropod.api.bootstrap_pb2 import BootstrapParams, BootstrapResult
from zeropod.shim import bootstrap


def test_a_second_start_finds_the_first_shim(stub_node: Node) -> None:
    first = stub_node.call("start", "a")
    assert first.startswith(b"unix:///run/containerd/s/")
    assert stub_node.call("start", "a") == first
    assert (stub_node.bundles / "a/address").read_bytes() == first
    assert list(stub_node.shims().values()) == ["a"]
    assert stub_node.call("start", "b") != first
    assert len(stub_node.shims()) == 2
    assert len(stub_node.zygotes()) == 1


def test_a_pod_has_one_shim(stub_node: Node) -> None:
    stub_node.bundle("pod", io__kubernetes__cri__container_type="sandbox")
    sandbox = stub_node.call("start", "pod")
    folder = stub_node.bundle("app")
    annotations = {"io.kubernetes.cri.sandbox-id": "pod"}
    (folder / "config.json").write_text(json.dumps({"annotations": annotations}))
    assert stub_node.call("start", "app") == sandbox
    assert list(stub_node.shims().values()) == ["pod"]
    assert (folder / "address").read_bytes() == sandbox


def test_answer_as_json_where_it_is_understood(stub_node: Node) -> None:
    plain = stub_node.call("start", "a", MAX_SHIM_VERSION="2").decode()
    found = json.loads(stub_node.call("start", "a", MAX_SHIM_VERSION="3"))
    assert found == {"version": 3, "address": plain, "protocol": "ttrpc"}


def test_every_containerd_is_answered_in_its_form(stub_node: Node) -> None:
    """Also by a shim that another one has started."""
    plain = stub_node.call("start", "a", MAX_SHIM_VERSION="2").decode()
    options = AnyMessage(type_url="containerd.runc.v1.Options").SerializeToString()
    assert stub_node.call("start", "a", options, MAX_SHIM_VERSION="2").decode() == plain
    for id in ("a", "b"):  # which exists, and which does not
        params = BootstrapParams(instance_id=id, namespace="test").SerializeToString()
        found = BootstrapResult.FromString(stub_node.call("start", id, params))
        assert (found.version, found.protocol) == (3, "ttrpc")
        assert (found.address == plain) is (id == "a")
        assert stub_node.call("start", id).decode() == found.address


@pytest.mark.parametrize("zygote", ["on", "off"])
def test_an_error_is_one_line_on_stderr(stub_node: Node, zygote: str) -> None:
    for id, environ, expected in (
        ("a", {"STUB": "fail"}, b"RuntimeError: it does not work"),
        ("_", {}, b"id '_' is not a valid identifier"),
    ):
        process = stub_node.launch("start", id, ZEROPOD_ZYGOTE=zygote, **environ)
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out) == (1, b"")
        assert expected in err
        assert err.count(b"\n") == 1
    assert not stub_node.shims()
    assert not list(stub_node.path("/run/containerd/s").iterdir())


@pytest.mark.parametrize("zygote", ["on", "off"])
def test_a_runtime_gets_containerds_environment_and_no_more(stub_node: Node, zygote: str) -> None:
    """Not what the interpreter was given for itself: its settings of malloc."""
    process = stub_node.launch("start", "a", ZEROPOD_ZYGOTE=zygote, STUB="environ", EXTRA="kept")
    _, err = process.communicate(timeout=120)
    names = {word.partition(b"=")[0] for word in err.split() if b"=" in word}
    assert {b"PATH", b"EXTRA", b"STUB"} <= names, err
    assert not names & {b"GLIBC_TUNABLES", b"MALLOC_ARENA_MAX"}, err


def properties(pid: int) -> dict[str, object]:
    """What a shim is to the kernel."""
    folder = Path(f"/proc/{pid}")
    status = dict(line.split(":\t", 1) for line in (folder / "status").read_text().splitlines())
    return {
        "cwd": str((folder / "cwd").readlink()),
        "session": os.getsid(pid),
        "oom": int((folder / "oom_score_adj").read_text()),
        "cgroup": (folder / "cgroup").read_text(),
        "ignored": status["SigIgn"],
        "blocked": status["SigBlk"],
        "caught": status["SigCgt"],
        "threads": status["Threads"],
        "umask": status["Umask"],
        "files": [str(link.readlink()).split("[")[0] for link in sorted((folder / "fd").iterdir())],
        "limits": (folder / "limits").read_text(),
        "title": (folder / "cmdline").read_bytes().rstrip(b"\0 ").replace(b"\0", b" "),
    }


def test_a_shim_of_the_zygote_is_as_one_of_its_own(stub_node: Node) -> None:
    """And both are what a shim must be: own session, score and cgroup of containerd, no strays."""
    stub_node.start("a")
    stub_node.start("b", ZEROPOD_ZYGOTE="off")
    ids = {id: pid for pid, id in stub_node.shims().items()}
    forked, alone = properties(ids["a"]), properties(ids["b"])
    for id, found in (("a", forked), ("b", alone)):
        assert found.pop("session") == ids[id]
        assert found.pop("title") == (
            f"{LAUNCHER} -namespace test -id {id} -address /run/c.sock".encode()
        )
        files = found.pop("files")
        log = str(stub_node.bundles / id / "log")
        assert files == ["/dev/null", "/dev/null", log, "socket:"]
    assert forked == alone
    own = int(Path("/proc/self/oom_score_adj").read_text())
    assert forked["oom"] == own + 1
    assert forked["cgroup"] == Path("/proc/self/cgroup").read_text()
    assert forked["cwd"] == "/"
    assert forked["threads"] == "1"


def test_the_zygote_has_no_strays(stub_node: Node) -> None:
    stub_node.start("a")
    (zygote,) = stub_node.zygotes()

    def descriptors() -> list[str]:
        return sorted(path.name for path in Path(f"/proc/{zygote}/fd").iterdir())

    def only_its_own() -> bool:  # a shim may answer before the zygote has closed its connection
        return descriptors() == ["0", "1", "2", "3", "4", "5"]  # listening, containerd, inotify

    waiting.until("the zygote's own descriptors", only_its_own)
    for number in range(20):
        stub_node.start(f"b{number}")
    waiting.until("the zygote's own descriptors", only_its_own)
    environ = Path(f"/proc/{zygote}/environ").read_bytes().rstrip(b"\0").split(b"\0")
    names = {entry.split(b"=")[0] for entry in environ}
    assert names == {b"PATH", b"MALLOC_ARENA_MAX", b"GLIBC_TUNABLES"}


def test_the_log_goes_to_the_fifo(stub_node: Node) -> None:
    folder = stub_node.bundle("a")
    reader = os.open(folder / "log", os.O_RDONLY | os.O_NONBLOCK)
    process = stub_node.launch("start", "a", STUB="fail")
    process.communicate(timeout=120)
    text = os.read(reader, 65536)
    os.close(reader)
    assert b'level=error msg="RuntimeError: it does not work" id=a namespace=test' in text


def test_a_killed_shim_is_replaced(stub_node: Node) -> None:
    address = stub_node.call("start", "a")
    (pid,) = stub_node.shims()
    stub_node.kill(pid)
    assert stub_node.call("start", "a") == address
    (again,) = stub_node.shims()
    assert again != pid


def test_the_shim_that_ends_takes_its_socket_along(stub_node: Node) -> None:
    path = stub_node.start("a")
    (pid,) = stub_node.shims()
    ended = os.pidfd_open(pid)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.send(b"quit")
        assert connection.recv(1) == b""
    _wait(ended)
    assert not path.exists()


def _wait(pidfd: int) -> None:
    assert select.select([pidfd], [], [], 60)[0]
    os.close(pidfd)


def test_without_an_interpreter_one_sentence(stub_node: Node, tmp_path: Path) -> None:
    lone = tmp_path / "bin"
    lone.mkdir()
    (lone / LAUNCHER).write_bytes((stub_node.bin / LAUNCHER).read_bytes())
    (lone / LAUNCHER).chmod(0o755)
    stub_node.bin = lone
    process = stub_node.launch("start", "a")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert err.decode().count("\n") == 1
    assert f"{lone}/python3 did not answer: No such file" in err.decode()


def test_an_interpreter_that_dies_is_reported(stub_node: Node, tmp_path: Path) -> None:
    lone = tmp_path / "bin"
    lone.mkdir()
    (lone / LAUNCHER).write_bytes((stub_node.bin / LAUNCHER).read_bytes())
    (lone / LAUNCHER).chmod(0o755)
    (lone / "python3").symlink_to("/bin/false")
    stub_node.bin = lone
    process = stub_node.launch("start", "a")
    process.communicate(timeout=120)
    assert process.returncode == 1


def test_a_stopped_zygote_is_passed_by_and_does_nothing_later(stub_node: Node) -> None:
    stub_node.start("a")
    (zygote,) = stub_node.zygotes()
    os.kill(zygote, signal.SIGSTOP)
    stub_node.start("b")
    os.kill(zygote, signal.SIGCONT)
    stub_node.start("c")  # the zygote has seen b's stale request before this one
    assert Counter(stub_node.shims().values()) == Counter("abc")
    assert stub_node.zygotes() == [zygote]


def test_a_killed_zygote_is_started_again(stub_node: Node) -> None:
    stub_node.start("a")
    (zygote,) = stub_node.zygotes()
    stub_node.kill(zygote)
    stub_node.start("b")
    assert Counter(stub_node.shims().values()) == Counter("ab")
    (again,) = stub_node.zygotes()
    assert again != zygote


def test_many_first_starts_make_one_zygote(stub_node: Node) -> None:
    started = [stub_node.launch("start", f"a{number}") for number in range(12)]
    for process in started:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err.decode()
    assert len(stub_node.zygotes()) == 1
    assert Counter(stub_node.shims().values()) == Counter(f"a{n}" for n in range(12))


def test_many_starts_of_one_group_make_one_shim(stub_node: Node) -> None:
    started = [stub_node.launch("start", "a") for _ in range(12)]
    answers = set()
    for process in started:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err.decode()
        answers.add(out)
    assert len(answers) == 1
    assert len(stub_node.shims()) == 1


ZYGOTE = b"zeropod-zygote"
ENOUGH = 10  # kills, if a busy machine brings so many in its time


def title(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0 ")
    except (FileNotFoundError, ProcessLookupError):
        return b""


def children(pid: int) -> list[int]:
    try:
        return [*map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
    except (FileNotFoundError, ProcessLookupError):
        return []


def kill_stopped(node: Node, pid: int, *, zygote: bool) -> bool:
    """Kill ``pid`` if it is the zygote, or else if it is a child of it that has not answered yet.

    Both bear the zygote's title, the child until just before its answer. So a candidate is stopped
    first, and looked at while it cannot become anything else. The zygote has an inotify descriptor,
    which a child closes at once.
    """
    try:
        os.kill(pid, signal.SIGSTOP)
        while (state := Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]) != "T":
            if state in "ZX":
                return False
        links = [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]
    except (FileNotFoundError, ProcessLookupError):
        return False
    if title(pid) == ZYGOTE and (not zygote or "anon_inode:inotify" in links):
        node.kill(pid)
        return True
    os.kill(pid, signal.SIGCONT)
    return False


@pytest.mark.parametrize("victim", ["zygote", "child"])
def test_killed_at_random_moments(stub_node: Node, victim: str) -> None:
    """Every start succeeds and every container has exactly one shim, whoever dies on the way."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    over = threading.Event()
    end = time.monotonic() + 120
    killed: list[int] = []
    stub_node.start("warm")
    (zygote,) = stub_node.zygotes()

    def kill_zygotes() -> None:
        while not over.wait(dice.uniform(0, 0.06)):
            for pid in stub_node.zygotes():
                if kill_stopped(stub_node, pid, zygote=True):
                    killed.append(pid)

    def kill_children() -> None:
        """They live for a millisecond or two: look often, and at none twice. Spare every other."""
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), -20)
        seen: set[int] = set()
        while not over.wait(dice.uniform(0, 0.001)):
            new = set(children(zygote)) - seen
            seen |= new
            for pid in [*new, *(grandchild for child in new for grandchild in children(child))]:
                chosen = title(pid) == ZYGOTE and dice.random() < 0.5
                if chosen and kill_stopped(stub_node, pid, zygote=False):
                    killed.append(pid)

    killer = threading.Thread(target=kill_zygotes if victim == "zygote" else kill_children)
    killer.start()
    ids: list[str] = []
    try:
        while len(ids) < 30 or (len(killed) < ENOUGH and time.monotonic() < end):
            names = [f"a{len(ids) + more}" for more in range(3)]
            running = {id: stub_node.launch("start", id) for id in names}
            ids += running
            for id, process in running.items():
                out, err = process.communicate(timeout=120)
                assert process.returncode == 0, f"{id}: {err.decode()}"
                path = stub_node.path(out.decode().removeprefix("unix://"))
                assert bootstrap.served(path), f"{id} is not served"
    finally:
        over.set()
        killer.join()
    print(f"killed {len(killed)} in {len(ids)} starts")
    assert killed
    assert Counter(stub_node.shims().values()) == Counter([*ids, "warm"])


def test_nothing_that_a_shim_starts_has_its_descriptors(stub_node: Node) -> None:
    """A runtime that had its socket would look like a shim that lives."""
    for zygote in ("on", "off"):
        stub_node.start(zygote, ZEROPOD_ZYGOTE=zygote)
    assert len(stub_node.shims()) == 2
    for pid in stub_node.shims():
        folder = Path(f"/proc/{pid}/fdinfo")
        flags = {
            int(entry.name): int(entry.read_text().split("flags:")[1].split()[0], 8)
            for entry in folder.iterdir()
        }
        assert [fd for fd, flag in flags.items() if fd > 2 and not flag & os.O_CLOEXEC] == []


def test_the_child_killed_before_its_answer(stub_node: Node) -> None:
    """Its start goes on in an interpreter of the launcher's own."""
    stub_node.start("warm")
    process = stub_node.launch("start", "a", STUB="hang")
    while "a" not in (ids := stub_node.shims()).values():
        assert process.poll() is None
    child = next(pid for pid, id in ids.items() if id == "a")
    stub_node.kill(child)
    while not (again := [p for p, id in stub_node.shims().items() if id == "a" and p != child]):
        assert process.poll() is None
    assert len(again) == 1
    process.kill()
    process.communicate()


def test_a_stranger_is_not_served(stub_node: Node) -> None:
    """Even one who can reach the socket: the zygote looks at who connects."""
    stub_node.start("a")
    (path,) = stub_node.path("/run/zeropod/z").glob("*/*.s")
    for folder in (path, path.parent, path.parent.parent, stub_node.path("/run/zeropod")):
        folder.chmod(0o777)
    before = stub_node.processes()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        descriptor = os.open(path.parent, os.O_PATH)
        os.seteuid(65534)
        try:
            connection.connect(f"/proc/self/fd/{descriptor}/{path.name}")
        finally:
            os.seteuid(0)
            os.close(descriptor)
        connection.settimeout(10)
        assert connection.recv(16) == b""
    assert stub_node.processes() == before


def _queued(folder: Path) -> list[int]:
    """How many have connected to each socket that listens in the folder and are not accepted."""
    said = subprocess.run(["ss", "-xlnH"], check=True, capture_output=True, text=True).stdout
    lines = (line.split() for line in said.splitlines())
    return [int(line[2]) for line in lines if folder.name in line[4]]


def test_a_place_that_others_can_write_to_is_not_trusted(stub_node: Node) -> None:
    stub_node.start("a")
    (folder,) = stub_node.path("/run/zeropod/z").iterdir()
    (zygote,) = stub_node.zygotes()
    folder.chmod(0o777)
    os.kill(zygote, signal.SIGSTOP)  # who asks it stays in its queue
    stub_node.start("b")
    assert _queued(folder) == [0]
    folder.chmod(0o700)
    stub_node.start("c")
    assert _queued(folder) == [1]
    os.kill(zygote, signal.SIGCONT)


def test_the_zygotes_files_are_roots_alone(stub_node: Node) -> None:
    stub_node.start("a")
    for path in stub_node.path("/run/zeropod").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_another_build_replaces_the_zygote(stub_node: Node) -> None:
    stub_node.start("a")
    (zygote,) = stub_node.zygotes()
    ended = os.pidfd_open(zygote)
    launcher = stub_node.bin / LAUNCHER
    content = launcher.read_bytes()
    launcher.unlink()
    launcher.write_bytes(content)  # as pip does
    launcher.chmod(0o755)
    stub_node.start("b")
    _wait(ended)
    assert len(stub_node.zygotes()) == 1
    assert Counter(stub_node.shims().values()) == Counter("ab")


def test_the_zygote_ends_with_containerd(stub_node: Node) -> None:
    """Here with the shell that the first launcher was a child of."""
    bundle = stub_node.bundle("a")
    script = (
        f"cd {bundle}; {stub_node.bin / LAUNCHER} -namespace test -id a "
        "-address /run/c.sock start </dev/null; read -r line"
    )
    shell = subprocess.Popen(
        ["nsenter", "-t", str(stub_node.holder), "-m", "sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert shell.stdout
    assert shell.stdout.read(7) == b"unix://"
    (zygote,) = stub_node.zygotes()
    ended = os.pidfd_open(zygote)
    shell.kill()
    shell.communicate()
    _wait(ended)
    assert list(stub_node.shims().values()) == ["a"]
