"""Which versions of the tools are accepted."""

from __future__ import annotations

import pytest

from lab.tools import Tool, upstream


@pytest.mark.parametrize(
    ("version", "numbers"),
    [
        ("2.1.9+ds1-5", (2, 1, 9)),
        ("1:4.2.1-1", (4, 2, 1)),
        ("1.3.6+ds1-1", (1, 3, 6)),
        ("4.2-1", (4, 2)),
        ("experimental", ()),
    ],
)
def test_upstream_numbers_of_a_debian_version(version: str, numbers: tuple[int, ...]) -> None:
    assert upstream(version) == numbers


@pytest.mark.parametrize(
    ("version", "accepted"),
    [("4.1.1-1", False), ("4.2-1", True), ("4.2.1-1", True), ("4.3-1", False), ("x", False)],
)
def test_tested_range_has_an_open_end(version: str, accepted: bool) -> None:
    assert Tool("criu", (4, 2), (4, 3), ()).accepts(version) is accepted
