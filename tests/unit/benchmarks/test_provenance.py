"""When figures are worth little."""

from __future__ import annotations

import pytest

from benchmarks import provenance


@pytest.mark.parametrize(
    ("load", "cores", "expected"), [(0.1, 2, False), (0.6, 2, True), (0.6, 8, False)]
)
def test_load_is_seen_against_the_cores(load: float, cores: int, expected: bool) -> None:
    assert provenance.busy(load, cores) is expected
