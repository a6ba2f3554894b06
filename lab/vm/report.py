"""What a virtual machine reports: lines of JSON, and the table made of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

CHOICE = "zeropod.check="
"""On the kernel's command line: words of the names of the checks to do, or nothing."""


@dataclass(frozen=True, slots=True)
class Result:
    """Of one check. ``said``: what it has seen, or why it failed."""

    check: str
    ok: bool
    said: str

    def line(self) -> str:
        return json.dumps(asdict(self))


@dataclass(slots=True)
class Report:
    """Of one boot. Whole only when the machine said that it had done them all."""

    kernel: str
    results: list[Result] = field(default_factory=list)
    count: int = 0
    error: str = ""

    def take(self, line: str) -> str:
        """Note a line; returns it for people to read."""
        found = json.loads(line)
        if "count" in found:
            self.count = int(found["count"])
            return f"{self.count} checks"
        self.results.append(Result(**found))
        mark = "ok" if found["ok"] else "FAILED"
        return f"{mark:6} {found['check']}: {found['said']}"

    @property
    def ok(self) -> bool:
        done = self.count and len(self.results) == self.count
        return bool(done) and not self.error and all(result.ok for result in self.results)


def table(reports: Sequence[Report], versions: Mapping[str, str]) -> str:
    """Markdown: a row for each check, a column for each kernel."""
    checks = list(dict.fromkeys(result.check for report in reports for result in report.results))
    lines = [
        ", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
        "",
        "| check | " + " | ".join(f"Linux {report.kernel}" for report in reports) + " |",
        "|---|" + "---|" * len(reports),
    ]
    for check in checks:
        cells = [_cell(report, check) for report in reports]
        lines.append(f"| {check} | " + " | ".join(cells) + " |")
    lines += [f"\nLinux {report.kernel}: {report.error}" for report in reports if report.error]
    passed = sum(result.ok for report in reports for result in report.results)
    lines.append(f"\n{passed} of {sum(report.count for report in reports)} passed.")
    return "\n".join(lines)


def _cell(report: Report, check: str) -> str:
    for result in report.results:
        if result.check == check:
            return result.said if result.ok else f"**failed**: {result.said}"
    return "not run"
