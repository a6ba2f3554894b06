"""What samples say: percentiles, and how sure a ratio of two medians is."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence

from lab.show import percentile

Pair = tuple[float, float]
"""Two figures taken right after each other: (ours, theirs)."""

PERCENTILES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0))


def percentiles(values: Sequence[float]) -> list[float]:
    """One for each of ``PERCENTILES``. Raises ValueError without values."""
    return [percentile(values, share) for _, share in PERCENTILES]


def median_ratio(pairs: Sequence[Pair]) -> float:
    """Median of the first figures over the median of the second. Raises ValueError without any."""
    if not pairs:
        raise ValueError("no pairs")
    ours, theirs = zip(*pairs, strict=True)
    return float(statistics.median(ours) / statistics.median(theirs))


def ratio_interval(
    pairs: Sequence[Pair],
    *,
    block: int = 1,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 1,
) -> tuple[float, float]:
    """A confidence interval of `median_ratio`, by the percentile bootstrap.

    Pairs are drawn whole, so what slows both of a pair widens nothing; and so are blocks of so many
    pairs that were taken one after another, which are not independent of each other. The same pairs
    and seed give the same interval. Raises ValueError without pairs.
    """
    if not pairs:
        raise ValueError("no pairs")
    chance = random.Random(seed)
    blocks = [pairs[at : at + block] for at in range(0, len(pairs), block)]
    ratios = []
    for _ in range(resamples):
        drawn = chance.choices(blocks, k=len(blocks))
        ratios.append(median_ratio([pair for found in drawn for pair in found]))
    tail = (1 - confidence) / 2
    return percentile(ratios, tail), percentile(ratios, 1 - tail)
