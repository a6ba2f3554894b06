"""Which containerd is answered with version 3."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from zeropod.shim import caller

_MODULE = b"github.com/containerd/containerd"


@pytest.mark.parametrize(
    ("said", "version"),
    [
        (b"containerd " + _MODULE + b" 1.7.24~ds1 1.7.24~ds1-6\n", (1, 7)),
        (
            b"containerd " + _MODULE + b"/v2 2.0.0 207ad711eabd375a01713109a8a197d197ff6542\n",
            (2, 0),
        ),
        (
            b"containerd " + _MODULE + b"/v2 v2.1.4 75cb2b7193e4e490e9fbdc236c0e811ccaba3376\n",
            (2, 1),
        ),
        (b"containerd " + _MODULE + b"/v2 2.1.9+unknown \n", (2, 1)),
        (b"containerd github.com/k3s-io/containerd v1.7.23-k3s2 \n", (1, 7)),
        (b"containerd github.com/k3s-io/containerd v2.0.5-k3s1 \n", (2, 0)),
        (b"Python 3.13.5\n", (0, 0)),
        (b"", (0, 0)),
    ],
)
def test_versions(said: bytes, version: tuple[int, int]) -> None:
    assert caller.version(said) == version


@pytest.mark.parametrize(
    ("version", "joins", "abandons"),
    [
        ((0, 0), False, False),
        ((1, 7), False, False),
        ((2, 0), True, True),
        ((2, 3), True, True),
        ((2, 4), True, False),
        ((3, 0), True, False),
    ],
)
def test_what_a_version_does(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, int], joins: bool, abandons: bool
) -> None:
    monkeypatch.setitem(caller._asked, 7, version)
    assert (caller.joins_itself(7), caller.abandons(7)) == (joins, abandons)


_PROGRAM = """
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], "--version")) {
        char self[4096] = {0};

        if (readlink("/proc/self/exe", self, sizeof(self) - 10) > 0)
            mkdir(strcat(self, ".asked"), 0700);
        printf("%s example.org/containerd/v2 v2.0.0 abc\\n", argv[0]);
        HANG;
        return 0;
    }
    puts("runs");
    fflush(stdout);
    return getchar() != EOF;
}
"""


def _program(folder: Path, name: str, hang: str = "") -> Path:
    file = folder / name
    compiler = ["gcc", "-x", "c", f"-DHANG={hang}", "-o", file, "-"]
    subprocess.run(compiler, input=_PROGRAM.encode(), check=True)
    return file


def _joins_itself(program: Path) -> bool:
    """Start it, ask what it is, and end it."""
    pipe = subprocess.PIPE
    with subprocess.Popen([program], stdin=pipe, stdout=pipe) as process:
        assert process.stdin and process.stdout
        assert process.stdout.readline() == b"runs\n"
        caller.ask(process.pid)
        process.stdin.close()
        return caller.joins_itself(process.pid)


def test_its_own_program_is_asked_by_the_name_that_it_has(tmp_path: Path) -> None:
    assert _joins_itself(_program(tmp_path, "containerd"))
    assert (tmp_path / "containerd.asked").exists()


def test_a_program_of_another_name_is_not_executed(tmp_path: Path) -> None:
    assert not _joins_itself(_program(tmp_path, "other"))
    assert not (tmp_path / "other.asked").exists()


def test_one_that_does_not_answer_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caller, "_TIMEOUT_S", 2.0)
    assert not _joins_itself(_program(tmp_path, "containerd", "pause()"))
    assert (tmp_path / "containerd.asked").exists()


def test_one_that_is_gone_is_unknown(tmp_path: Path) -> None:
    with subprocess.Popen([_program(tmp_path, "containerd")], stdin=subprocess.PIPE) as process:
        process.kill()
    caller.ask(process.pid)
    assert not caller.joins_itself(process.pid)


def test_the_pid_behind_a_pidfd() -> None:
    pidfd = os.pidfd_open(os.getppid())
    assert caller.pid_of(pidfd) == os.getppid()
    os.close(pidfd)
