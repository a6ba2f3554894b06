"""The benchmarks' command line."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from benchmarks import (
    awake,
    idle,
    many,
    memory,
    packet,
    phases,
    probe,
    provenance,
    scaledown,
    splice,
    start,
    wake,
)
from benchmarks.report import Report
from lab import node as lab_node
from lab.node import Node
from lab.steps import LabError, say

BENCHMARKS: dict[str, ModuleType] = {
    module.__name__.rpartition(".")[2]: module
    for module in (wake, phases, probe, awake, packet, splice, start, many, memory, idle, scaledown)
}


ORIGINS = {"node": ("node",), "pod": ("pod",), "both": ("node", "pod")}


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """What is asked for. ``origins`` is None where nothing is said of it."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure zeropod on a node of its own. Without a name: everything.",
        epilog="\n".join(
            f"  {name:10} {module.ABOUT} [{module.ROUNDS}]" for name, module in BENCHMARKS.items()
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="name", help="what to measure: see below")
    parser.add_argument("--rounds", type=int, help="how often, in place of [the default]")
    parser.add_argument("--pods", type=int, help="how many, where pods are measured together")
    parser.add_argument(
        "--origin",
        choices=ORIGINS,
        help="for wake: from the node (spliced) [the default], a pod (parked)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there")
    parser.add_argument("--markdown", action="store_true", help="print tables for the docs")
    given = parser.parse_args(argv)
    if unknown := set(given.names) - set(BENCHMARKS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    for name in ("rounds", "pods"):
        value = getattr(given, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be at least 1")
    given.origins = ORIGINS.get(given.origin)
    return given


def _measure(name: str, given: argparse.Namespace) -> Report:
    """Run one benchmark on a fresh node. It is given what it has a default for."""
    module = BENCHMARKS[name]
    say(f"{name}: {module.ABOUT}")
    values = [
        getattr(given, option) or getattr(module, option.upper())
        for option in ("rounds", "pods", "origins")
        if hasattr(module, option.upper())
    ]
    with Node.start(f"python -m benchmarks {name}") as node:
        try:
            found = module.run(node, *values)
        except (OSError, ValueError, AssertionError) as error:
            raise LabError(f"{name}: {type(error).__name__}: {error}") from error
    assert isinstance(found, Report)
    return found


def _print(found: Report, origin: dict[str, str], markdown: bool) -> None:
    line = ", ".join(f"{name} {value}" for name, value in origin.items())
    width = shutil.get_terminal_size().columns
    print("\n".join(found.markdown(line) if markdown else found.text(line, width)), flush=True)


def _load(before: float, after: float) -> str:
    return f"{before:.2f} before, {after:.2f} after"


def main() -> int:
    given = arguments()
    written: dict[str, object] = {}
    try:
        load = provenance.load_average()
        lab_node.build()
        for name in given.names or BENCHMARKS:
            before = provenance.load_average()
            found = _measure(name, given)
            load_text = _load(before, provenance.load_average())
            origin = {**provenance.collect(), "load average": load_text}
            _print(found, origin, given.markdown)
            written[name] = {"provenance": origin, "samples": found.samples}
        if provenance.busy(load, provenance.cores()):
            say(f"warning: the load average was {load:.2f} at the start: others were at work")
        if given.json:
            given.json.write_text(json.dumps(written, indent=1) + "\n")
    except LabError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("benchmarks: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
