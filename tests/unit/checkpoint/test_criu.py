"""What is said to CRIU and what is read from its log."""

from __future__ import annotations

from pathlib import Path

import pytest

from zeropod.checkpoint import criu
from zeropod.checkpoint.criu import Verdict

BEGIN = "(00.000128) Version: 4.2.1 (gitid 0)\n"
ERROR = "(00.02) Error (criu/files-reg.c:2247): File etc/x has bad size 3 (expect 2)\n"
FAILED = "(00.03) Error (criu/cr-restore.c:2613): Restoring FAILED.\n"
GOING = "(00.030232) Running pre-resume scripts\n"
RESUMED = "(00.030361) Restore finished successfully. Tasks resumed.\n"


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        (None, Verdict.NEVER_RAN),
        (BEGIN + ERROR + FAILED, Verdict.NEVER_RAN),
        ("", Verdict.UNKNOWN),
        (BEGIN, Verdict.UNKNOWN),
        (BEGIN + ERROR, Verdict.UNKNOWN),
        (BEGIN + GOING, Verdict.UNKNOWN),
        (BEGIN + GOING + FAILED, Verdict.UNKNOWN),
        (BEGIN + GOING + RESUMED, Verdict.UNKNOWN),
        (BEGIN + GOING + RESUMED + FAILED, Verdict.UNKNOWN),
    ],
)
def test_only_a_whole_log_proves(tmp_path: Path, text: str | None, verdict: Verdict) -> None:
    log = tmp_path / "restore.log"
    if text is not None:
        log.write_text(text)
    assert criu.judge(log) is verdict


def test_the_first_error_is_the_reason(tmp_path: Path) -> None:
    log = tmp_path / "dump.log"
    log.write_text(
        "(00.0) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self\n"
        "(00.1) Error (criu/files-ext.c:98): Can't dump file 5 of that type [anon [io_uring]]\n"
        "(00.2) Error (criu/cr-dump.c:1975): Dumping FAILED.\n"
    )
    assert "io_uring, which CRIU cannot dump" in criu.reason(log)
    assert criu.reason(tmp_path / "none") == ""


def test_tail_has_twenty_lines_of_a_long_log(tmp_path: Path) -> None:
    log = tmp_path / "dump.log"
    log.write_text("".join(f"line {n}\n" for n in range(50_000)))
    assert criu.log_tail(log) == tuple(f"line {n}" for n in range(49_980, 50_000))
    assert criu.log_tail(tmp_path / "none") == ()


def test_config_pins_mounts() -> None:
    text = criu.config([("/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu/k/c1")])
    assert "external mnt[/sys/fs/cgroup/cpu]:/sys/fs/cgroup/cpu/k/c1\n" in text
    assert {"tcp-close", "skip-in-flight", "network-lock skip"} <= set(text.splitlines())


def test_mount_trees_are_found_once(tmp_path: Path) -> None:
    log = tmp_path / "restore.log"
    log.write_text("mnt-v2: Bind /tmp/.criu.mntns.AmO1ie/mnt-01 to /tmp/.criu.mntns.AmO1ie/mnt-2\n")
    assert criu.mount_trees(log) == {Path("/tmp/.criu.mntns.AmO1ie")}
