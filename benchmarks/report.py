"""A benchmark's result, and its forms: text for a terminal, Markdown for docs/performance.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.sample import PERCENTILES, Pair, median_ratio, percentiles, ratio_interval
from lab import show


@dataclass(frozen=True, slots=True)
class Table:
    """Cells are text. The first column is left-aligned, the others hold figures."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def text(self) -> list[str]:
        """Columns two spaces apart."""
        lines = [self.header, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.header))]
        return ["  ".join(_aligned(line, widths)).rstrip() for line in lines]

    def markdown(self) -> list[str]:
        rule = ["---", *["---:"] * (len(self.header) - 1)]
        return [f"| {' | '.join(line)} |" for line in (self.header, rule, *self.rows)]


@dataclass(frozen=True, slots=True)
class Report:
    """``chart``: (label, nanoseconds). ``samples``: every figure, named with its unit."""

    title: str
    tables: Sequence[Table]
    chart: Sequence[tuple[str, float]] = ()
    notes: Sequence[str] = ()
    samples: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def text(self, origin: str, width: int) -> list[str]:
        """For a terminal of ``width`` columns; tables may be wider. ``origin``: of the figures."""
        blocks = [table.text() for table in self.tables]
        if self.chart:
            blocks.append(show.chart(self.chart, width))
        blocks.append(list(self.notes))
        return [self.title, "=" * len(self.title), origin, "", *_separated(blocks)]

    def markdown(self, origin: str) -> list[str]:
        """A section of docs/performance.md."""
        blocks = [table.markdown() for table in self.tables]
        if self.chart:
            blocks.append(["```", *show.chart(self.chart, 80), "```"])
        blocks.append([f"- {note}" for note in self.notes])
        return [f"### {self.title}", "", f"*{origin}*", "", *_separated(blocks)]


def times(rows: Mapping[str, Sequence[float]], first: str) -> Table:
    """Percentiles of nanoseconds, one row for each sample; ``first`` heads the first column."""
    header = [first, "n", *(name for name, _ in PERCENTILES)]
    body = [
        [label, str(len(values)), *map(show.milliseconds, percentiles(values))]
        for label, values in rows.items()
    ]
    return Table(header, body)


@dataclass(frozen=True, slots=True)
class Ratio:
    """Of two medians, with its 95 % interval; ``count`` pairs."""

    label: str
    count: int
    ratio: float
    low: float
    high: float

    def row(self) -> list[str]:
        return [self.label, str(self.count), f"{self.ratio:.3f}", f"{self.low:.3f}–{self.high:.3f}"]

    def verdict(self, bound: float) -> str:
        """Whether the upper end of the interval is within the bound."""
        met = "met" if self.high <= bound else "not met"
        return f"{self.label}: upper end of the interval {self.high:.3f}, bound {bound}: {met}"


def ratios(
    pairs: Mapping[str, Sequence[Pair]], *, block: int = 1, resamples: int = 10_000
) -> list[Ratio]:
    """One for each sample of pairs; ``block`` as `ratio_interval` has it."""
    return [
        Ratio(
            *(label, len(values), median_ratio(values)),
            *ratio_interval(values, block=block, resamples=resamples),
        )
        for label, values in pairs.items()
    ]


def ratio_table(found: Sequence[Ratio], first: str) -> Table:
    """``first`` says what is divided by what."""
    return Table([first, "pairs", "ratio of medians", "95 % interval"], [r.row() for r in found])


def _aligned(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    first, *others = zip(line, widths, strict=True)
    return [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]


def _separated(blocks: Sequence[Sequence[str]]) -> list[str]:
    """The lines of all blocks that have any, each followed by an empty line."""
    return [line for block in blocks if block for line in (*block, "")]
