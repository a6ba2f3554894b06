"""Boot the virtual machine with each kernel, one after the other, and print what its checks say."""

from __future__ import annotations

import argparse
import sys
import time

from lab import node
from lab.steps import LabError, say
from lab.vm import disks, machine
from lab.vm.report import Report, table

_DEADLINE_S = 30 * 60


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m lab.vm", description=__doc__)
    parser.add_argument("--kernel", default="", help="the begin of its release: 6.1.")
    parser.add_argument("--check", default="", help="words of the names of those to do: nginx,left")
    return parser.parse_args()


def main() -> int:
    arguments = _arguments()
    deadline = time.monotonic() + _DEADLINE_S
    reports: list[Report] = []
    try:
        node.build()
        root = disks.build_root()
        with disks.lab_disk() as lab:
            for kernel in disks.kernels(root):
                if not kernel.startswith(arguments.kernel):
                    continue
                say(f"vm: Linux {kernel} …")
                left_s = deadline - time.monotonic()
                reports.append(machine.run(root, kernel, lab, arguments.check, left_s))
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    print(table(reports, disks.versions(root)))
    return 0 if reports and all(report.ok for report in reports) else 1


if __name__ == "__main__":
    sys.exit(main())
