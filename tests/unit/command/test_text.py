"""Figures and tables."""

from __future__ import annotations

import pytest

from zeropod.command import text

MS, S, M, H, D = 10**6, 10**9, 60 * 10**9, 3600 * 10**9, 86400 * 10**9


@pytest.mark.parametrize(
    ("ns", "shown"),
    [
        *((-5, "0ms"), (0, "0ms"), (340 * MS, "340ms"), (2_840 * MS, "2.8s"), (57 * S, "57s")),
        *((99 * S, "99s"), (100 * S, "1m"), (99 * M, "99m"), (100 * M, "1h"), (47 * H, "47h")),
        *((48 * H, "2d"), (400 * D, "400d")),
    ],
)
def test_durations(ns: int, shown: str) -> None:
    assert text.duration(ns) == shown


@pytest.mark.parametrize(
    ("ns", "shown"), [(0, "-"), (62_140_000, "62.1 ms"), (1_204_000_000, "1,204 ms")]
)
def test_milliseconds(ns: int, shown: str) -> None:
    assert text.milliseconds(ns) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0 B"), (1023, "1023 B"), (2048, "2 KiB"), (9_856_000, "9.4 MiB"), (5 << 30, "5.0 GiB")],
)
def test_sizes(count: int, shown: str) -> None:
    assert text.size(count) == shown


def test_a_table() -> None:
    rows = [("one", "1", "x"), ("fourteen", "100", "a long reason")]
    assert text.table(("NAME", "N", "WHY"), rows, right={"N"}) == [
        "NAME        N  WHY",
        "one         1  x",
        "fourteen  100  a long reason",
    ]
    assert (
        text.table(("NAME", "N", "WHY"), rows, right={"N"}, width=20)[2] == "fourteen  100  a lo…"
    )
    assert text.table(("NAME", "N"), []) == ["NAME  N"]
