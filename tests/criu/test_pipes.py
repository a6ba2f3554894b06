"""The pipes of a process belong to whom the runtime's options say."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from zeropod.container.events import Stdio
from zeropod.container.logger import Logger
from zeropod.container.stdio import ProcessIO
from zeropod.oci.runtime import RuntimeOptions


def _no_logger(uri: str) -> Logger:
    raise AssertionError(uri)


async def test_a_user_namespaces_root_owns_its_pipes(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("in", "out", "err")]
    for path in paths:
        os.mkfifo(path)
    owner = RuntimeOptions(io_uid=1000, io_gid=1001).io_owner
    io = ProcessIO(
        asyncio.get_running_loop(), Stdio(*paths), keep=True, owner=owner, open_logger=_no_logger
    )
    try:
        found = {(os.fstat(fd).st_uid, os.fstat(fd).st_gid) for fd in io.child_fds}
        assert found == {(1000, 1001)}
    finally:
        io.close()
