"""A result as text and as Markdown."""

from __future__ import annotations

import pytest

from benchmarks.report import Report, Table, ratio_table, ratios, times

_TABLE = Table(["case", "n"], [["wake-up", "50"], ["awake", "7"]])


def test_text_aligns_the_first_column_left_and_figures_right() -> None:
    assert _TABLE.text() == ["case      n", "wake-up  50", "awake     7"]


def test_markdown_is_a_table() -> None:
    assert _TABLE.markdown() == [
        "| case | n |",
        "| --- | ---: |",
        "| wake-up | 50 |",
        "| awake | 7 |",
    ]


def test_times_are_percentiles_in_milliseconds() -> None:
    table = times({"wake-up": [n * 1e6 for n in range(1, 101)]}, "request")
    assert table.header == ["request", "n", "p50", "p90", "p99", "max"]
    assert table.rows == [["wake-up", "100", "50.0 ms", "90.0 ms", "99.0 ms", "100 ms"]]


def test_report_has_its_parts_apart_from_each_other() -> None:
    report = Report("wake", [_TABLE], chart=[("wake-up", 2e6), ("awake", 1e6)], notes=["quiet"])
    lines = report.markdown("cores 2")
    assert lines[:5] == ["### wake", "", "*cores 2*", "", "| case | n |"]
    assert lines.count("```") == 2
    assert lines[-2:] == ["- quiet", ""]
    assert report.text("cores 2", 80)[-2:] == ["quiet", ""]


def test_report_without_chart_and_notes_is_its_tables() -> None:
    lines = Report("wake", [_TABLE]).text("cores 2", 80)
    assert lines == ["wake", "====", "cores 2", "", *_TABLE.text(), ""]


def test_ratios_have_their_interval_and_a_verdict() -> None:
    found = ratios({"exec": [(3.0, 2.0)] * 7}, resamples=10)
    table = ratio_table(found, "ours / theirs")
    assert table.header == ["ours / theirs", "pairs", "ratio of medians", "95 % interval"]
    assert table.rows == [["exec", "7", "1.500", "1.500–1.500"]]


@pytest.mark.parametrize(("bound", "verdict"), [(1.5, "met"), (1.49, "not met")])
def test_the_upper_end_is_held_against_the_bound(bound: float, verdict: str) -> None:
    (found,) = ratios({"exec": [(3.0, 2.0)] * 7}, resamples=10)
    said = f"exec: upper end of the interval 1.500, bound {bound}: {verdict}"
    assert found.verdict(bound) == said
