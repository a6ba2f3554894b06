"""Figures as text: what the demo prints must be right at the edges too."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab import show


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([5.0], 0.5, 5.0), ([3, 1, 2], 0.5, 2), ([1, 2, 3, 4], 0.5, 2), (range(1, 21), 0.9, 18)],
)
def test_percentile_is_one_of_the_values(
    values: list[float], share: float, expected: float
) -> None:
    assert show.percentile(values, share) == expected


def test_percentile_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        show.percentile([], 0.5)


@pytest.mark.parametrize(
    ("ns", "text"),
    [(430_000, "0.43 ms"), (12_340_000, "12.3 ms"), (1_031_000_000, "1,031 ms")],
)
def test_milliseconds_keep_three_digits(ns: int, text: str) -> None:
    assert show.milliseconds(ns) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (2048, "2 KiB"), (9 * 1024 * 1024 + 419_431, "9.4 MiB")]
)
def test_size(count: int, text: str) -> None:
    assert show.size(count) == text


@given(
    st.lists(st.floats(0, 1e12), min_size=1, max_size=30), st.integers(min_value=40, max_value=200)
)
def test_no_line_of_a_chart_is_wider_than_the_terminal(values: list[float], width: int) -> None:
    lines = show.chart([(str(number), value) for number, value in enumerate(values)], width)
    assert all(len(line) <= width for line in lines)
    assert len(lines) == len(values)
