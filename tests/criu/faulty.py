"""A runtime that fails on demand, in runc's place: which verb, how, and once."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

_SCRIPT = """#!/bin/sh
for verb; do
    case $verb in
    create|start|exec|kill|pause|resume|update|checkpoint|restore|delete) break ;;
    esac
done
if mv "{folder}/$verb" "{folder}/$verb.was" 2>/dev/null; then
    read fault < "{folder}/$verb.was"
    case $fault in
    late-*) runc "$@" || exit ;;
    esac
    case $fault in
    *error) exit 1 ;;
    *kill) kill -9 $$ ;;
    *hang) exec sleep 1000 ;;
    esac
fi
exec runc "$@"
"""


class Fault(StrEnum):
    """Before the verb does its work, or after it (LATE)."""

    ERROR = "error"
    KILL = "kill"
    HANG = "hang"
    LATE_ERROR = "late-error"
    LATE_KILL = "late-kill"
    LATE_HANG = "late-hang"


class FaultyRuntime:
    """``path`` is to be the runtime."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self.path = folder / "runc"
        self.path.write_text(_SCRIPT.format(folder=folder))
        self.path.chmod(0o755)

    def inject(self, verb: str, fault: Fault) -> None:
        """The next run of the verb has the fault."""
        (self._folder / verb).write_text(f"{fault}\n")

    def happened(self, verb: str) -> bool:
        return (self._folder / f"{verb}.was").exists()
