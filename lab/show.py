"""Figures as text for a terminal: milliseconds, sizes, percentiles and bars."""

from __future__ import annotations

import math
from collections.abc import Sequence

_EIGHTHS = " ▏▎▍▌▋▊▉"


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` (0–1] of all values do not exceed."""
    if not values:
        raise ValueError("no values")
    return sorted(values)[max(math.ceil(share * len(values)), 1) - 1]


def milliseconds(ns: float) -> str:
    """``12.3 ms`` below 100, ``123 ms`` above: three digits that mean something."""
    ms = ns / 1e6
    if ms < 10:
        return f"{ms:.2f} ms"
    return f"{ms:.1f} ms" if ms < 100 else f"{ms:,.0f} ms"


def size(count: int) -> str:
    """Bytes as ``0 B``, ``512 KiB``, ``9.4 MiB``."""
    if count < 1024:
        return f"{count} B"
    if count < 1024 * 1024:
        return f"{count / 1024:.0f} KiB"
    return f"{count / 1024 / 1024:.1f} MiB"


def bar(value: float, longest: float, width: int) -> str:
    """A bar of at most ``width`` columns, exact to an eighth; never empty."""
    eighths = max(round(value / longest * width * 8), 1) if longest else 1
    whole, rest = divmod(min(eighths, width * 8), 8)
    return "█" * whole + (_EIGHTHS[rest] if rest else "")


def chart(rows: Sequence[tuple[str, float]], width: int) -> list[str]:
    """One line per (label, nanoseconds): label, time, bar; all within ``width`` columns."""
    times = [milliseconds(value) for _, value in rows]
    label_width = max(len(label) for label, _ in rows)
    time_width = max(len(text) for text in times)
    longest = max(value for _, value in rows)
    room = max(width - label_width - time_width - 3, 8)
    return [
        f"{label:>{label_width}} {text:>{time_width}}  {bar(value, longest, room)}"
        for (label, value), text in zip(rows, times, strict=True)
    ]
