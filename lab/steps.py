"""Build steps that survive an interruption, and the lines that say how they go.

A step makes its result in ``<target>.part`` and renames it into place last: what has its final name
is complete. A result carries ``stamp.json`` with the fingerprint of what it was made from; another
fingerprint means that it is made anew.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

STAMP = "stamp.json"


class LabError(Exception):
    """Something that the user has to know, in one or a few sentences; shown without a traceback."""


def say(text: str) -> None:
    """One line of progress on stderr, at once."""
    print(f"lab: {text}", file=sys.stderr, flush=True)


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Say what begins, and how long it took when it ends well."""
    say(f"{what} …")
    begin_ns = time.monotonic_ns()
    yield
    say(f"{what}: {(time.monotonic_ns() - begin_ns) / 1e9:.1f} s")


def run(
    argv: Sequence[str | Path], *, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> str:
    """Run a command to its end and return its stdout.

    Raises LabError with the last 20 lines of what it wrote, or when the program is not there.
    """
    try:
        done = subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    except (FileNotFoundError, PermissionError) as error:  # a folder of PATH that is not ours
        raise LabError(
            f"{argv[0]}: not found; lab/install-host-packages.sh installs what the lab needs"
        ) from error
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
        raise LabError(f"{' '.join(map(str, argv))}: exit {done.returncode}\n{tail}")
    return done.stdout


def fingerprint(parts: Iterable[str | bytes | Path]) -> str:
    """A hash over strings and the contents of files: the same inputs give the same result."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.read_bytes() if isinstance(part, Path) else part
        raw = data.encode() if isinstance(data, str) else data
        digest.update(len(raw).to_bytes(8, "big") + raw)
    return digest.hexdigest()


def is_made(target: Path, made_from: str) -> bool:
    """Whether the directory ``target`` is complete and was made from this fingerprint."""
    try:
        stamp = json.loads((target / STAMP).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(stamp, dict) and stamp.get("made_from") == made_from


@contextmanager
def making(target: Path, made_from: str) -> Iterator[Path]:
    """A fresh directory to build in, which becomes ``target`` when the block ends well.

    Left-overs of an interrupted run are removed first; after an error nothing changes.
    """
    part = target.with_name(target.name + ".part")
    remove(part)
    part.mkdir(parents=True)
    yield part
    (part / STAMP).write_text(json.dumps({"made_from": made_from}) + "\n")
    remove(target)
    part.rename(target)


def remove(path: Path) -> None:
    """Remove a file or a tree; nothing happens where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_file(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a whole file by rename, so that nobody ever reads half of it."""
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.chmod(mode)
    part.rename(path)
