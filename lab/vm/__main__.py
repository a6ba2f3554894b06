"""Boot a virtual machine with each kernel, all at once, and print what their checks say.

One alone leaves processors idle: it waits for an app to be idle, or for one program.
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from lab import node
from lab.steps import LabError
from lab.vm import disks, machine
from lab.vm.report import table

_DEADLINE_S = 30 * 60


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m lab.vm", description="The checks.")
    parser.add_argument("--kernel", default="", help="the begin of its release: 6.1.")
    parser.add_argument("--check", default="", help="words of the names of those to do: nginx,left")
    return parser.parse_args()


def main() -> int:
    arguments = _arguments()
    deadline = time.monotonic() + _DEADLINE_S
    try:
        node.build()
        root = disks.build_root()
        kernels = [name for name in disks.kernels(root) if name.startswith(arguments.kernel)]
        with disks.lab_disk() as lab, ThreadPoolExecutor() as pool:
            run = partial(machine.run, root, lab, arguments.check, deadline)
            reports = list(pool.map(run, kernels))
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    print(table(reports, disks.versions(root)))
    return 0 if reports and all(report.ok for report in reports) else 1


if __name__ == "__main__":
    sys.exit(main())
