"""containerd's command line, and the conversation with the launcher."""

from __future__ import annotations

import array
import os
import socket
from pathlib import Path

import pytest

from zeropod.errors import InvalidArgument, Unavailable
from zeropod.shim.invocation import Channel, parse
from zeropod.version import BUILD_ID

START = ["-namespace", "k8s.io", "-address", "/run/c.sock", "-publish-binary", "/bin/c"]


def test_start_as_containerd_calls_it() -> None:
    found = parse([*START, "-id", "abc", "-debug", "start"], {}, "/bundle")
    assert (found.action, found.namespace, found.id) == ("start", "k8s.io", "abc")
    assert (found.address, found.bundle, found.debug) == ("/run/c.sock", "/bundle", True)


def test_delete_names_its_bundle() -> None:
    found = parse([*START, "-id", "abc", "-bundle", "/b/abc", "delete"], {}, "/elsewhere")
    assert (found.action, found.bundle, found.debug) == ("delete", "/b/abc", False)


def test_go_takes_two_dashes_and_equals_signs() -> None:
    found = parse(["--namespace=n", "--id=a", "--debug=false", "start"], {}, "/")
    assert (found.namespace, found.id, found.debug) == ("n", "a", False)


def test_events_go_to_the_address_given_or_beside_containerds() -> None:
    argv = [*START, "-id", "a", "start"]
    assert parse(argv, {"TTRPC_ADDRESS": "/run/x"}, "/").ttrpc_address == "/run/x"
    assert parse(argv, {}, "/").ttrpc_address == "/run/c.sock.ttrpc"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["-namespace", "n", "-id", "a"], "expected start or delete, found nothing"),
        (["-namespace", "n", "-id", "a", "run"], "found run"),
        (["-namespace", "n", "-id", "a", "start", "delete"], "found start delete"),
        (["-namespace", "n", "start"], "flag -id is missing"),
        (["-id", "a", "start"], "flag -namespace is missing"),
        (["-colour", "a", "start"], "flag -colour is not known"),
        (["-id"], "flag -id needs a value"),
        (["-namespace", "n", "-id", "../a", "start"], "id '../a' is not a valid identifier"),
        (["-namespace", "a/b", "-id", "a", "start"], "namespace 'a/b' is not a valid"),
        (["-namespace", "n", "-id", "a" * 77, "start"], "is not a valid identifier"),
    ],
)
def test_refused(argv: list[str], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        parse(argv, {}, "/")


class Launcher:
    """The other end, as launcher.c has it."""

    def __init__(self, folder: Path) -> None:
        self.end, child = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.end.settimeout(5)
        self.channel = Channel(child)
        self.folder = folder

    def send(self, *strings: bytes, argc: int, stdin: bytes = b"", build: str = BUILD_ID) -> None:
        request = os.memfd_create("request")
        os.write(request, b"".join(s + b"\0" for s in (b"1", b"7", b"%d" % argc, *strings)))
        options = os.memfd_create("stdin")
        os.write(options, stdin)
        cwd = os.open(self.folder, os.O_PATH)
        fds = array.array("i", [request, options, cwd])
        self.end.sendmsg([build.encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
        for fd in fds:
            os.close(fd)


ARGV = (b"-namespace", b"n", b"-id", b"a", b"start")


@pytest.fixture
def launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Launcher:
    monkeypatch.chdir("/")
    return Launcher(tmp_path)


def test_a_request_is_claimed_and_answered(launcher: Launcher, tmp_path: Path) -> None:
    launcher.send(*ARGV, b"PATH=/bin", b"A=b=c", argc=5, stdin=b"opts")
    launcher.end.send(b"go")
    found = launcher.channel.receive(os.getpid())
    assert launcher.end.recv(16) == b"claim"
    assert found.bundle == str(tmp_path)
    assert found.environ == {"PATH": "/bin", "A": "b=c"}
    assert (found.stdin, found.containerd_pid, found.launcher_pid) == (b"opts", 7, os.getpid())
    launcher.channel.answer(b"unix:///x")
    assert launcher.end.recv(99) == b"0unix:///x"
    assert launcher.end.recv(99) == b""


def test_nothing_is_done_for_a_launcher_that_gave_up(launcher: Launcher) -> None:
    launcher.send(*ARGV, argc=5)
    launcher.end.close()
    with pytest.raises(Unavailable, match="the launcher is gone"):
        launcher.channel.receive(os.getpid())


def test_another_build_is_not_served(launcher: Launcher) -> None:
    launcher.send(*ARGV, argc=5, build="other")
    with pytest.raises(Unavailable, match="the launcher is of other"):
        launcher.channel.receive(os.getpid())


def descriptors() -> list[str]:
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


def test_no_descriptor_is_kept(launcher: Launcher) -> None:
    before = descriptors()
    for build in (BUILD_ID, "other"):
        launcher.send(*ARGV, argc=5, build=build)
        launcher.end.send(b"go")
        try:
            launcher.channel.receive(os.getpid())
        except Unavailable:
            assert build == "other"
    assert descriptors() == before


def test_an_answer_nobody_reads_is_known(launcher: Launcher) -> None:
    launcher.end.close()
    with pytest.raises(Unavailable):
        launcher.channel.answer(b"x")
