"""When a process counts as ended."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from lab import processes, waiting

_FIRST_ENDS = """
import ctypes, sys, threading
thread = threading.Thread(target=sys.stdin.read)
thread.start()
ctypes.CDLL(None).pthread_exit(None)
"""


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_it_lives_while_a_thread_does() -> None:
    argv = [sys.executable, "-c", _FIRST_ENDS]
    with subprocess.Popen(argv, stdin=subprocess.PIPE) as child:
        assert child.stdin
        waiting.until("the end of its first thread", lambda: _state(child.pid) == "Z")
        assert processes.alive(child.pid)
        child.stdin.close()
        waiting.until("its end", lambda: not processes.alive(child.pid))
        assert os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT) is not None
    assert not processes.alive(child.pid)
