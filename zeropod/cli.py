"""The command `zeropod`: its arguments, and how it ends.

Exit codes: 0, 1 for what has failed, 2 for a command line that makes no sense, 130 for Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from zeropod.command import run
from zeropod.config import STATUS_ROOT
from zeropod.errors import ZeropodError
from zeropod.version import BUILD_ID, VERSION

_ANSWER_S: Final = 5.0
_DUMP_S: Final = 300.0
_REFRESH_S: Final = 2.0
_INTERRUPTED: Final = 130

_REFERENCE: Final = """
A container is named by its id or the beginning of it, by its name, its pod's name, or as `ps`
shows it, <namespace>/<pod>/<container>.
"""
_PS: Final = """
The containers of all pods of this node that run under zeropod, and why those are awake that are.
SLEEPS IN is how long it takes until one falls asleep if nobody comes; REASON says what it waits
for, or why it never sleeps.
"""
_INSPECT: Final = """
All that is known of one container: its ports, who used them last and what becomes of who connects,
its wake-ups and the phases of the last one, what was counted of its connections and packets.
"""
_WAKE: Final = "Have containers run that sleep, as a connection would."
_SLEEP: Final = """
Have containers sleep now: they need not have been idle for long. One does not sleep while something
is under way in it (an exec), before it listens on a port, or where it is not scaled; it says why.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit code."""
    parser = _parser()
    options = parser.parse_args(argv)
    if not hasattr(options, "run"):
        parser.print_help()
        return 0
    code: int = 0
    try:
        with run.unread():
            code = options.run(options)
            sys.stdout.flush()
    except KeyboardInterrupt:
        return _INTERRUPTED
    except ZeropodError as error:
        run.complain(str(error))
        return 1
    except OSError as error:
        run.complain(f"its output cannot be written: {error.strerror}")
        return 1
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="zeropod",
        description="Containers that sleep: a containerd shim that scales to zero.",
        epilog="containerd runs the shim itself, containerd-shim-zeropod-v2; see the README.",
    )
    parser.add_argument("--version", action="version", version=f"zeropod {VERSION} ({BUILD_ID})")
    commands = parser.add_subparsers(title="commands", metavar="")

    def add(
        name: str,
        does: Callable[[argparse.Namespace], int],
        line: str,
        text: str,
        timeout_s: float = _ANSWER_S,
    ) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=line, description=text)
        made.set_defaults(run=does)
        made.add_argument(
            "--root",
            type=Path,
            default=STATUS_ROOT,
            metavar="DIR",
            help="where the shims have their sockets (%(default)s)",
        )
        made.add_argument(
            "--timeout",
            type=_seconds,
            default=timeout_s,
            metavar="SECONDS",
            help="how long a shim may take for its answer (%(default)g)",
        )
        return made

    def add_output(made: argparse.ArgumentParser) -> None:
        made.add_argument("--json", action="store_true", help="for a program")
        made.add_argument(
            "--watch",
            type=_seconds,
            nargs="?",
            const=_REFRESH_S,
            metavar="SECONDS",
            help=f"again and again, until Ctrl-C (every {_REFRESH_S:g} s)",
        )

    add_output(add("ps", run.ps, "all containers of the node", _PS))
    inspect = add("inspect", run.inspect, "all of one container", _INSPECT + _REFERENCE)
    inspect.add_argument("container", help="its id, the beginning of it, or its name")
    add_output(inspect)
    wake = add("wake", run.wake, "wake containers", _WAKE + _REFERENCE, _DUMP_S)
    wake.add_argument("containers", nargs="+", metavar="container")
    sleep = add("sleep", run.sleep, "put containers to sleep", _SLEEP + _REFERENCE, _DUMP_S)
    sleep.add_argument("containers", nargs="+", metavar="container")
    sleep.add_argument(
        "--force",
        action="store_true",
        help="though somebody is connected, who is cut off, or it was just sent a signal",
    )
    return parser


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return value
