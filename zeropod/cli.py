"""The command `zeropod`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from zeropod.version import BUILD_ID, VERSION


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="zeropod",
        description="Containers that sleep: a containerd shim that scales to zero.",
        epilog="containerd runs the shim itself, containerd-shim-zeropod-v2; see the README.",
    )
    parser.add_argument("--version", action="version", version=f"zeropod {VERSION} ({BUILD_ID})")
    parser.parse_args(argv)
    parser.print_help()
    return 0
