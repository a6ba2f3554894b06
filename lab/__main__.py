"""The lab's command line."""

from __future__ import annotations

import argparse
import sys

from lab import node, paths, python, tools
from lab.lock import holder
from lab.steps import LabError, remove, say

_COMMANDS = {
    "build": "make what a node needs: tools, images, the wheel of this checkout",
    "up": "build what is missing, start a node and leave it running",
    "down": "stop the node that was left running",
    "shell": "open a shell on the node, with ctr and our commands; without one, start one for it",
    "status": "say what is built and what runs",
    "clean": "stop the node and remove everything that the lab made",
}


def _up() -> None:
    node.build()
    running = node.Node.start("lab up")
    running.keep()
    installed = {**tools.versions(), **python.versions()}
    versions = ", ".join(f"{name} {version}" for name, version in installed.items())
    say(f"up: {versions}")
    say("`python -m lab shell` looks inside, `python -m lab down` ends it")


def _down() -> None:
    say("node: stopped" if node.stop_running() else "no node was running")


def _shell() -> int:
    if holder(paths.LOCK) is not None:
        return node.Node.attach().shell()
    node.build()
    with node.Node.start("lab shell") as running:
        say("this node ends with the shell")
        return running.shell()


def _status() -> None:
    print(f"folder   {paths.ROOT}")
    built = tools.versions() if (paths.TOOLS / "versions.json").exists() else {}
    built |= python.versions() if (paths.PYTHON / "versions.json").exists() else {}
    print("tools    " + (", ".join(f"{k} {v}" for k, v in built.items()) or "not built"))
    print("images   " + (" ".join(sorted(p.name for p in paths.IMAGES.glob("*"))) or "not built"))
    print("wheel    " + ("installed" if (paths.VENV / "stamp.json").exists() else "not installed"))
    who = holder(paths.LOCK)
    print(
        "node     "
        + (f"process {who.pid} ({who.command}) since {who.since}" if who else "not running")
    )


def _clean() -> None:
    node.stop_running()
    remove(paths.ROOT)
    say(f"{paths.ROOT} is removed")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m lab",
        description="A throw-away node with containerd, CRIU and zeropod on this machine.",
        epilog="\n".join(f"  {name:8} {text}" for name, text in _COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=_COMMANDS, metavar="command", help="one of these:")
    command = parser.parse_args().command
    try:
        if command == "shell":
            return _shell()
        actions = {
            "build": node.build, "up": _up, "down": _down, "status": _status, "clean": _clean,
        }  # fmt: skip
        actions[command]()
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
