"""Notes every function that a shim runs. `benchmarks.layout` puts a copy where the node loads it.

Loaded before the zygote begins. The first fork from there makes a shim, the second a helper of it,
whose memory goes with it and which is of no interest.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import CodeType
from typing import Any

OUTPUT = Path(__file__).with_suffix(".out")
"""A line "module qualname" for each function of each shim."""

_monitoring: Any = vars(sys)["monitoring"]  # from Python 3.12 on; mypy is told of 3.11
_TOOL = _monitoring.OPTIMIZER_ID
_forks = 0


def _after_fork() -> None:
    global _forks
    _forks += 1
    if _forks == 1:
        _monitoring.use_tool_id(_TOOL, __name__)
        _monitoring.register_callback(_TOOL, _monitoring.events.PY_START, _begins)
        _monitoring.set_events(_TOOL, _monitoring.events.PY_START)
    elif _forks == 2:
        _monitoring.free_tool_id(_TOOL)


def _begins(code: CodeType, offset: int) -> object:
    module = sys._getframe(1).f_globals.get("__name__")
    if module != __name__:
        output = os.open(OUTPUT, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.write(output, f"{module} {code.co_qualname}\n".encode())
        os.close(output)
    return _monitoring.DISABLE


os.register_at_fork(after_in_child=_after_fork)
