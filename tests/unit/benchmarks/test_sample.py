"""What the benchmarks say of samples."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import sample

_TIMES = st.floats(1, 1e6)
_PAIRS = st.lists(st.tuples(_TIMES, _TIMES), min_size=1, max_size=20)


def test_percentiles_are_values_of_the_sample() -> None:
    assert sample.percentiles([float(n) for n in range(100, 0, -1)]) == [50, 90, 99, 100]


def test_percentiles_of_few_values_end_at_the_largest() -> None:
    assert sample.percentiles([3, 1, 2]) == [2, 3, 3, 3]


def test_ratio_is_that_of_the_medians_and_not_the_median_of_ratios() -> None:
    assert sample.median_ratio([(10, 1), (20, 10), (30, 100)]) == 2


@pytest.mark.parametrize("ask", [sample.median_ratio, sample.ratio_interval, sample.percentiles])
def test_nothing_measured_is_refused(ask: object) -> None:
    assert callable(ask)
    with pytest.raises(ValueError, match="no"):
        ask([])


def test_interval_of_equal_pairs_is_a_point() -> None:
    assert sample.ratio_interval([(3, 2)] * 10) == (1.5, 1.5)


def test_interval_is_the_same_every_time() -> None:
    chance = random.Random(7)
    pairs = [(chance.gauss(100, 10), chance.gauss(100, 10)) for _ in range(50)]
    assert sample.ratio_interval(pairs) == sample.ratio_interval(pairs)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """95 % of the intervals hold the true ratio of 1.1; 100 trials may show 88 at the least."""
    chance = random.Random(11)
    covered = 0
    for _ in range(100):
        pairs = [(chance.gauss(110, 8), chance.gauss(100, 8)) for _ in range(50)]
        low, high = sample.ratio_interval(pairs, resamples=400)
        covered += low <= 1.1 <= high
    assert covered >= 88


def test_blocks_of_pairs_that_go_together_make_the_interval_wider() -> None:
    """Ten pairs that are all the same are worth one, and are drawn as one."""
    chance = random.Random(7)
    alone = [(chance.gauss(100, 10), chance.gauss(100, 10)) for _ in range(20)]
    repeated = [pair for pair in alone for _ in range(10)]
    low, high = sample.ratio_interval(repeated, block=10)
    assert (low, high) == sample.ratio_interval(alone)
    closer = sample.ratio_interval(repeated)
    assert low < closer[0] and closer[1] < high


def test_pairs_beyond_whole_blocks_count() -> None:
    pairs = [(1.0, 1.0)] * 4 + [(9.0, 1.0)]
    assert sample.ratio_interval(pairs, block=4)[1] == 9


@given(_PAIRS)
def test_interval_lies_within_the_possible(pairs: list[tuple[float, float]]) -> None:
    low, high = sample.ratio_interval(pairs, resamples=50)
    ours, theirs = zip(*pairs, strict=True)
    assert min(ours) / max(theirs) <= low <= high <= max(ours) / min(theirs)
