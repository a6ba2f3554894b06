"""What the virtual machine reports, and when that counts as passed."""

from __future__ import annotations

import json

import pytest

from lab.vm.report import Report, Result, table

_GOOD = Result("sleeps", True, "by TCX")
_BAD = Result("wakes", False, "AssertionError: no")


def _report(count: int, *results: Result) -> Report:
    report = Report("6.1.0")
    for line in (json.dumps({"count": count}), *(result.line() for result in results)):
        report.take(line)
    return report


@pytest.mark.parametrize(
    ("report", "ok"),
    [
        (_report(1, _GOOD), True),
        (_report(2, _GOOD), False),
        (_report(2, _GOOD, _BAD), False),
        (_report(0), False),
        (Report("6.1.0"), False),
    ],
)
def test_only_a_whole_report_without_failure_is_good(report: Report, ok: bool) -> None:
    assert report.ok is ok


def test_an_error_is_a_failure() -> None:
    report = _report(1, _GOOD)
    report.error = "not done after 5 s"
    assert not report.ok
    assert "Linux 6.1.0: not done after 5 s" in table([report], {})


def test_the_table_has_every_check_of_every_kernel() -> None:
    newer = Report("6.12.1", [_GOOD], 1)
    lines = table([_report(2, _GOOD, _BAD), newer], {"runc": "1.3"}).splitlines()
    assert lines[0] == "runc 1.3."
    assert lines[2:] == [
        "| check | Linux 6.1.0 | Linux 6.12.1 |",
        "|---|---|---|",
        "| sleeps | by TCX | by TCX |",
        "| wakes | **failed**: AssertionError: no | not run |",
        "",
        "2 of 3 passed.",
    ]
